"""`holdfast watch`: complete new files only, each once; findings are told once; interruption is code 130."""

import json

import numpy as np
import pytest

from holdfast.audit.judge.auditor import Auditor
from holdfast.audit.judge.finding import Finding
from holdfast.audit.read.reading import Reading
from holdfast.audit.simulate import FAULTS, clean_run
from holdfast.cli import dispatch
from holdfast.commands import watch
from holdfast.rollout.store import write_rollouts

SMALL = {"steps": 2, "prompts": 4, "group_size": 4, "mean_length": 30}


def watcher(path):
    return watch.Watcher(path, Auditor(Reading()))


def test_a_file_is_read_when_it_rests_and_only_once(tmp_path):
    seen = watcher(tmp_path)
    assert seen.look() == []
    first = tmp_path / "step_1.parquet"
    write_rollouts(first, clean_run(0, **SMALL))
    assert seen.look() == []
    assert seen.look() == [first]
    assert seen.look() == []
    assert seen.auditor.facts.sequences == 32
    second = tmp_path / "step_2.parquet"
    write_rollouts(second, clean_run(1, **SMALL))
    assert seen.look(settled=True) == [second]
    assert seen.auditor.facts.sequences == 64


def test_parquet_that_is_being_written_waits(tmp_path):
    whole = tmp_path / "whole"
    write_rollouts(whole, clean_run(0, **SMALL))
    cut = tmp_path / "run" / "step_1.parquet"
    cut.parent.mkdir()
    cut.write_bytes(whole.read_bytes()[:-10])
    seen = watcher(cut.parent)
    assert [seen.look(settled=True) for _ in range(3)] == [[], [], []]
    cut.write_bytes(whole.read_bytes())
    assert seen.look(settled=True) == [cut]
    assert not seen.auditor.reading.rejected


def test_a_file_that_changes_later_is_noted(tmp_path):
    path = tmp_path / "step_1.parquet"
    write_rollouts(path, clean_run(0, **SMALL))
    seen = watcher(tmp_path)
    seen.look(settled=True)
    write_rollouts(path, clean_run(1, **SMALL)[:20])
    assert seen.look(settled=True) == []
    assert "changed after it was read" in seen.auditor.reading.notes[0]


def test_once_judges(tmp_path, capsys):
    assert dispatch(["watch", str(tmp_path), "--once"]) == 2
    fault = FAULTS["nan"]
    broken = fault.apply(clean_run(0, **SMALL), fault.strengths[-1], np.random.default_rng(0))
    write_rollouts(tmp_path / "step_1.parquet", broken)
    assert dispatch(["watch", str(tmp_path), "--once"]) == 1
    assert "invalid_logprobs" in capsys.readouterr().out
    assert dispatch(["watch", str(tmp_path), "--once", "--fail-on", "never"]) == 0


def test_lines_until_interrupted(tmp_path, monkeypatch, capsys):
    fault = FAULTS["nan"]
    broken = fault.apply(clean_run(0, **SMALL), fault.strengths[-1], np.random.default_rng(0))
    looks = iter([None, None, None])

    def sleep(seconds):
        assert seconds == 3
        if next(looks, "stop") == "stop":
            raise KeyboardInterrupt
        if not (path := tmp_path / "step_1.parquet").exists():
            write_rollouts(path, broken)

    monkeypatch.setattr(watch.time, "sleep", sleep)
    assert dispatch(["watch", str(tmp_path), "--every", "3"]) == 130
    said = capsys.readouterr().out
    assert said.startswith("watching ")
    assert "step_1.parquet: The log itself is wrong" in said
    assert said.count("[critical] invalid_logprobs") == 1


def test_news_are_told_once_and_again_when_worse():
    def found(severity):
        return (Finding("a", "drift", severity, "h", "m", "f"),)

    told = {}
    assert watch.news(found("warning"), told) == ["[warning] a: h. f"]
    assert watch.news(found("warning"), told) == []
    assert watch.news(found("critical"), told) == ["[critical] a: h. f"]


@pytest.mark.parametrize("content", [b"PAR1", b"PAR1xxxx", b"PAR1PAR"])
def test_a_stump_of_parquet_is_not_finished(tmp_path, content):
    path = tmp_path / "stump.parquet"
    path.write_bytes(content)
    assert watcher(tmp_path).look(settled=True) == []


def state(path, steps):
    """TRL's state of a run whose mismatch grows at once after 60 steps."""
    rng = np.random.default_rng(0)
    history = []
    for step in range(1, steps + 1):
        apart = 0.3 if step > 60 else 0.003
        history.append(
            {
                "step": step,
                "loss": 0.01 * float(rng.normal()),
                "reward": 0.4 + 0.002 * step + 0.02 * float(rng.normal()),
                "entropy": 0.5 + 0.01 * float(rng.normal()),
                "grad_norm": 0.5 + 0.05 * float(rng.normal()),
                "sampling/sampling_logp_difference/mean": apart * float(np.exp(rng.normal(0, 0.1))),
            }
        )
    path.write_text(json.dumps({"global_step": steps, "log_history": history}))


def test_numbers_by_step_are_read_anew_when_they_grow(tmp_path):
    seen, file = watcher(tmp_path), tmp_path / "trainer_state.json"
    assert seen.look() == [] and seen.nothing
    state(file, 40)
    assert seen.look() == [file]
    assert not seen.nothing
    assert not [f for f in seen.auditor.result().findings if f.severity != "info"]
    assert seen.look() == []
    state(file, 100)
    assert seen.look() == [file]
    assert "mismatch" in {f.name for f in seen.auditor.result().findings if f.severity != "info"}


def test_once_judges_numbers_by_step(tmp_path, capsys):
    state(tmp_path / "trainer_state.json", 100)
    assert dispatch(["watch", str(tmp_path), "--once"]) == 1
    assert "mismatch" in capsys.readouterr().out


def test_rollouts_go_before_numbers(tmp_path):
    state(tmp_path / "trainer_state.json", 40)
    write_rollouts(tmp_path / "step_1.parquet", clean_run(0, **SMALL))
    seen = watcher(tmp_path)
    assert seen.look(settled=True) == [tmp_path / "step_1.parquet"]
    assert seen.auditor.scalars is None

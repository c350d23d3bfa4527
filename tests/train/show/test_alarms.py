"""The guard in a run of ours: alarms in the step's line, a halt that can be gone on from, and no number changed."""

import numpy as np
import pytest

from holdfast.guard import guard as module
from holdfast.train.keep.checkpoint import latest_checkpoint
from holdfast.train.keep.folder import RunFolder
from holdfast.train.session import ending
from holdfast.train.show.alarms import guard_of, guarded

ON = ("--guard.on", "true", "--guard.every", "1", "--guard.confirm", "1", "--guard.first", "8", "--guard.last", "8")


def test_without_a_guard_nothing_is_added(small_config, tmp_path):
    record = {"step": 1, "loss": 0.1}
    assert guarded(record, guard_of(small_config(), RunFolder(tmp_path))) == (record, None)


@pytest.mark.slow
def test_a_halt_keeps_a_checkpoint_and_says_how_to_go_on(small_run, monkeypatch):
    broken = {"on": True}

    def breaks(self, step, values):
        taken(self, step, dict(values) | ({"loss": float("nan")} if broken["on"] else {}))

    taken = module.Guard.numbers
    monkeypatch.setattr(module.Guard, "numbers", breaks)
    folder, summary = small_run("run", *ON, "--guard.halt_on", "critical")
    assert not summary["finished"] and summary["steps"] == 3
    assert summary["halted"]["alarm"] == "not_finite" and summary["halted"]["step"] == 3
    assert latest_checkpoint(folder.checkpoints).name == "step_0003"
    last = folder.read_metrics()[-1]
    assert last["guard/worst"] == last["guard/not_finite"] == 2.0
    assert any(text.startswith("guard, critical: ") for text in last["warnings"])
    assert (folder.path / "guard" / "step_0003" / "report.html").is_file()
    assert "--resume --guard.halt_on never" in ending(summary, folder, None)
    broken["on"] = False
    _, summary = small_run("run", *ON, "--guard.halt_on", "never", resume=True)
    assert summary["finished"] and "halted" not in summary


def test_a_guard_that_fails_costs_the_run_nothing(small_run, monkeypatch):
    def broken(self):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(module.Guard, "_course", broken)
    folder, summary = small_run("run", *ON, "--guard.halt_on", "warning")
    assert summary["finished"]
    said = [text for record in folder.read_metrics() for text in record.get("warnings", []) if "planted" in text]
    assert len([text for text in said if "numbers" in text]) == 1


@pytest.mark.slow
def test_it_changes_no_number(small_run):
    lines = []
    for name, options in (("with", ON), ("without", ())):
        folder, _ = small_run(name, *options)
        lines.append(
            [[r[k] for k in ("loss", "reward_mean", "entropy", "grad_norm")] for r in folder.read_metrics()[1:]]
        )
    assert np.array_equal(*lines)


@pytest.mark.slow
def test_a_resumed_run_knows_its_first_steps(small_config, small_run):
    folder, _ = small_run("run", *ON)
    guard = guard_of(small_config(*ON), folder)
    assert sorted(guard._points["reward_mean"]) == [1, 2, 3, 4]


@pytest.mark.parametrize("key", ["first", "last"])
def test_settings_have_limits(small_config, key):
    with pytest.raises(Exception, match=r"at least 8|greater than or equal to 8"):
        small_config("--guard.on", "true", f"--guard.{key}", "2")

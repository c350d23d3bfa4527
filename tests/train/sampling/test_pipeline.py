"""Asynchronous rollouts: the schedule, the versions, and that no death of an engine changes a number."""

import json
import math
import multiprocessing
import os
import random
import signal
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from holdfast.errors import ConfigError, DataError, EngineError
from holdfast.rollout.store import read_rollouts
from holdfast.train import loop
from holdfast.train.keep.checkpoint import latest_checkpoint, load_state
from holdfast.train.keep.ledger import Account, Ledger, audit
from holdfast.train.sampling import pipeline
from holdfast.train.sampling.episodes import Writing
from holdfast.train.sampling.worker import Answer, Scribe
from holdfast.train.settings.configfile import build_config

AHEAD = ["--engine.lag", "0", "--async.staleness", "4", "--async.segments", "3", "--steps", "6"]
UNEVEN = {"seconds", "cpu_seconds", "tokens_per_cpu_second", "time_split", "engine_restarts"}


def numbers(folder):
    return [{k: v for k, v in record.items() if k not in UNEVEN} for record in folder.read_metrics()]


def weights(folder):
    return (latest_checkpoint(folder.checkpoints) / "model" / "model.safetensors").read_bytes()


def lines(folder):
    """Steps that the run has reported, the start among them; none during the warm start."""
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def engines(monkeypatch):
    monkeypatch.setattr(pipeline, "_EngineProcess", here())
    return pipeline._EngineProcess


def here():
    """Engines in this process, which die in the rounds named in `deaths`, once for each time that they are named.

    Every round takes them 1000 seconds.
    """

    class Here:
        deaths: ClassVar[list[int]] = []
        synced: ClassVar[list[int]] = []
        lives = ends = 0

        def __init__(self, config, folder, running):
            type(self).lives += 1
            self.scribe, self.asked = Scribe(config, folder, running), []
            sync = self.scribe.engine.sync
            self.scribe.engine.sync = lambda model, version: (self.synced.append(version), sync(model, version))

        def send(self, task):
            assert task.weights.is_file(), "a round is asked for when its weights are there"
            self.asked.append(task)

        def receive(self, timeout):
            task = self.asked.pop(0)
            if task.number in self.deaths:
                self.deaths.remove(task.number)
                raise pipeline.Died("ended with code -9")
            answer = self.scribe.play(task)
            assert answer.error is not None or answer.cpu_seconds > 0
            return replace(answer, cpu_seconds=1000.0)

        def end(self):
            type(self).ends += 1

    return Here


@pytest.mark.slow
def test_every_token_is_as_old_as_the_schedule_says(small_run, engines):
    """staleness 4, 3 segments of ceil(20 / 3) = 7 tokens: token t of a response is 4 - t // 7 updates old."""
    folder, summary = small_run("ahead", *AHEAD, "--steps", "8")
    for step in range(1, 9):
        records = list(read_rollouts(folder.path / "rollouts" / f"step_{step:04d}.parquet"))
        assert [r.sequence_id for r in records] == list(range(16 * (step - 1), 16 * step))
        for record in records:
            expected = [max(0, step - 1 - (4 - place // 7)) for place in range(len(record.response_ids))]
            assert list(record.weight_versions) == expected
        line = folder.read_metrics()[step]
        assert line["policy_lag"] == min(4, step - 1)
        assert min(2, step - 1) <= line["policy_lag_mean"] <= 4
    # Rounds -2 to 7 began ten batches, eight of which were trained on.
    assert summary["sequences"] | {"finished": 0} == {"started": 160, "finished": 0, "trained": 128, "restarts": 0}
    # ... and the engine was not asked for the others.
    assert folder.read_metrics()[8]["rounds_ahead"] == 0
    # The five rounds of version 0 and every later one load their weights once.
    assert engines.synced == list(range(6))
    assert not (folder.path / "engine").exists() and engines.lives == engines.ends == 1


def test_the_engine_s_time_is_counted_in_the_step_that_waits_for_it(small_run, engines):
    """Step 1 waits for the rounds -2, -1 and 0, every other step for one."""
    folder, _ = small_run("ahead", *AHEAD)
    assert [int(line["cpu_seconds"] // 1000) for line in folder.read_metrics()[1:]] == [3, 1, 1, 1, 1, 1]


def test_no_two_requests_draw_the_same_numbers(small_run, engines, monkeypatch):
    """Two requests in each of the rounds -2 to 5; evaluations are told by their budget."""
    seeds, advance = [], Writing.advance

    def spy(self, engine, episodes, *, budget, seed):
        if budget == 7:
            seeds.extend([seed(0), seed(1)])
        return advance(self, engine, episodes, budget=budget, seed=seed)

    monkeypatch.setattr(Writing, "advance", spy)
    small_run("ahead", *AHEAD)
    assert len(seeds) == len(set(seeds)) == 16


@pytest.mark.slow
def test_weights_are_kept_for_the_rounds_to_come_and_no_longer(small_run, engines, tmp_path):
    """After step j round j is next, under version max(0, j - 2)."""
    kept = []

    def look():
        if lines(tmp_path / "ahead"):
            kept.append(sorted(int(path.stem.split("_")[1]) for path in tmp_path.glob("ahead/engine/weights_*.pt")))
        return False

    small_run("ahead", *AHEAD, stop=look)
    assert kept == [list(range(max(0, step - 2), step + 1)) for step in range(len(kept))] and len(kept) == 6


@pytest.mark.slow
def test_no_death_changes_a_number(small_run, engines):
    whole, _ = small_run("whole", *AHEAD)
    draw = random.Random(0)
    engines.deaths = [-2, *(draw.randrange(-1, 6) for _ in range(4))]
    deaths, dead = len(engines.deaths), sorted(engines.deaths)
    cut, summary = small_run("cut", *AHEAD)
    assert numbers(cut) == numbers(whole) and weights(cut) == weights(whole)
    assert summary["sequences"]["restarts"] == deaths == cut.read_metrics()[-1]["engine_restarts"]
    assert not engines.deaths and engines.ends == engines.lives == 2 + deaths
    redone = [e["redo"] for e in Ledger(cut.ledger).read() if "died" in e]
    assert [rounds[0] for rounds in redone] == dead and redone[0] == [-2, -1, 0, 1, 2]
    trained = [e["trained"] for e in Ledger(cut.ledger).read() if "trained" in e]
    assert trained == [[16 * step, 16 * step + 15] for step in range(6)]


@pytest.mark.slow
def test_likeliest_tokens_come_with_the_pieces_they_belong_to(small_run, engines):
    """Bounds from top-4 in a run whose engine dies and whose trainer is stopped: nothing but the time differs."""
    top = [*AHEAD, "--steps", "3", "--engine.exact_kl", "false", "--engine.top_logprobs", "4"]
    whole, _ = small_run("whole", *top, "--objective.detector", "tv_upper")
    engines.deaths = [0]
    asked = iter([False, True])
    small_run("cut", *top, "--objective.detector", "tv_upper", stop=lambda: next(asked))
    cut, _ = small_run("cut", *top, "--objective.detector", "tv_upper", resume=True)
    assert numbers(cut) == numbers(whole) and weights(cut) == weights(whole)
    for record in whole.read_metrics()[1:]:
        assert "kl_exact_mean" not in record
        assert 0 < record["tv_lower_mean"] < record["tv_upper_mean"] <= record["tv_upper_max"] <= 1


@pytest.mark.slow
def test_a_resumed_run_repeats_the_rounds_that_were_under_way(small_run, engines):
    whole, _ = small_run("whole", *AHEAD)
    asked = iter([False, False, False, True])
    cut, summary = small_run("cut", *AHEAD, stop=lambda: next(asked))
    assert summary["steps"] == 3
    # As if it had been killed a step after the checkpoint.
    Ledger(cut.ledger).write(round=3, version=1, started=[80, 95], finished=list(range(48, 64)))
    Ledger(cut.ledger).write(step=4, trained=[48, 63])
    _, summary = small_run("cut", *AHEAD, resume=True)
    assert numbers(cut) == numbers(whole) and weights(cut) == weights(whole)
    assert summary["sequences"] == json.loads(whole.summary.read_text())["sequences"]
    # ... and one that is given more steps goes on as if it had had them from the start.
    short, _ = small_run("short", *AHEAD, "--steps", "4")
    small_run("short", *AHEAD, resume=True)
    assert [n | {"rounds_ahead": 0} for n in numbers(short)] == [n | {"rounds_ahead": 0} for n in numbers(whole)]


def test_a_checkpoint_holds_what_was_written_and_no_buffer_around_it(small_run, engines):
    asked = iter([False, False, True])
    cut, _ = small_run("cut", *AHEAD, stop=lambda: next(asked))
    written = load_state(latest_checkpoint(cut.checkpoints))["engine"]["written"]
    tensors = [v for batch in written.values() for episode in batch for v in episode.values() if torch.is_tensor(v)]
    assert len(tensors) > 32
    assert all(tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("cut_line", [False, True])
@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_begins_its_ledger_anew(small_run, engines, monkeypatch, cut_line):
    whole, _ = small_run("whole", *AHEAD)
    engines.deaths = [1]
    asked = iter([False, False, False, True])
    with monkeypatch.context() as patch:  # as a kill leaves it: no checkpoint, no summary
        patch.setattr(loop, "keep", lambda run: None)
        cut, _ = small_run("cut", *AHEAD, stop=lambda: next(asked))
    assert latest_checkpoint(cut.checkpoints) is None and len(cut.read_metrics()) == 4
    if cut_line:
        with cut.ledger.open("a") as file:
            file.write('{"round": 3, "vers')
    _, summary = small_run("cut", *AHEAD, resume=True)
    assert summary["finished"] and summary["sequences"] == json.loads(whole.summary.read_text())["sequences"]
    assert cut.ledger.read_bytes() == whole.ledger.read_bytes()
    assert numbers(cut) == numbers(whole) and weights(cut) == weights(whole)


@pytest.mark.slow
def test_a_step_that_broke_is_trained_on_after_all(small_run, engines, monkeypatch):
    """The reward fails once at step 4: steps 1 to 3 are kept, and the resumed run has the numbers of a whole one."""
    whole, _ = small_run("whole", *AHEAD, "--checkpoint.every", "0")
    score = loop.score

    def fails(run, episodes):
        if run.step == 3:
            raise DataError("the reward server is down")
        return score(run, episodes)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "score", fails)
        with pytest.raises(DataError, match="reward server"):
            small_run("cut", *AHEAD, "--checkpoint.every", "0")
    path = whole.path.parent / "cut"
    assert latest_checkpoint(path / "checkpoints").name == "step_0003"
    summary = json.loads((path / "summary.json").read_text())
    assert summary["failed_step"] == 4 and "reward server" in summary["error"] and not summary["finished"]
    assert summary["sequences"]["trained"] == 48
    cut, summary = small_run("cut", *AHEAD, "--checkpoint.every", "0", resume=True)
    assert summary["finished"] and cut.ledger.read_bytes() == whole.ledger.read_bytes()
    assert numbers(cut) == numbers(whole) and weights(cut) == weights(whole)


def test_a_resumed_run_remembers_its_engine_s_deaths(small_run, engines, tmp_path):
    engines.deaths = [0]
    small_run("cut", *AHEAD, "--steps", "3", stop=lambda: lines(tmp_path / "cut") > 1)
    folder, summary = small_run("cut", *AHEAD, "--steps", "3", resume=True)
    assert folder.read_metrics()[-1]["engine_restarts"] == summary["sequences"]["restarts"] == 1


def test_without_pieces_and_slack_it_is_one_update_behind(small_run, engines):
    """staleness 1, one segment: as far behind as an engine with lag 1."""
    ahead, _ = small_run("ahead", "--engine.lag", "0", "--async.staleness", "1")
    assert [record["policy_lag"] for record in ahead.read_metrics()[1:]] == [0, 1, 1, 1]


def test_an_engine_that_keeps_dying_ends_the_run_with_a_reason(small_run, engines):
    engines.deaths = [1] * 9
    with pytest.raises(EngineError, match=r"ended with code -9, 3 times in round 1 .*async.timeout"):
        small_run("run", *AHEAD, "--async.restarts", "2")
    assert engines.lives == 3


def test_what_no_engine_can_do_is_not_tried_again(small_run, engines, monkeypatch):
    monkeypatch.setattr(Scribe, "play", lambda self, task: Answer(task.number, error="logits are not finite"))
    with pytest.raises(EngineError, match=r"round -2 of the asynchronous engine failed: logits are not finite"):
        small_run("run", *AHEAD)
    assert engines.lives == 1


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match=r"segments = 3.*at most 2; nearest valid value: 2"):
        build_config({"async": {"staleness": 2, "segments": 3}})
    with pytest.raises(ConfigError, match=r"engine.lag = 1 and async.staleness = 2.*engine.lag = 0"):
        build_config({"async": {"staleness": 2}, "engine": {"lag": 1}})
    with pytest.raises(ConfigError, match=r"unknown key 'async.stalenes'; did you mean staleness"):
        build_config({"async": {"stalenes": 2}})


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"started": [0, 3]}, {"started": [3, 4]}], "sequence 3 was started 2 times"),
        ([{"started": [0, 3], "finished": [4]}], "sequence 4 got ahead of itself"),
        ([{"started": [0, 1], "finished": [0, 0]}], "sequence 0 was finished 2 times"),
        ([{"started": [0, 1], "finished": [0]}, {"trained": [0, 1]}], "sequence 1 got ahead of itself"),
        ([{"started": [0, 0], "finished": [0]}, {"trained": [0, 0]}, {"trained": [0, 0]}], "trained on 2 times"),
    ],
)
def test_a_ledger_that_does_not_add_up_is_an_error(entries, words):
    with pytest.raises(DataError, match=words):
        audit(entries)


def test_a_ledger_is_added_up_and_rewound(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.write(round=-1, version=0, started=[0, 1], finished=[1])
    ledger.write(died="ended with code -9", redo=[0])
    ledger.write(round=0, version=0, started=[2, 3], finished=[0, 2])
    ledger.write(step=1, trained=[0, 1])
    assert audit(ledger.read()) == Account(started=4, finished=3, trained=2, restarts=1)
    with ledger.path.open("a") as file:
        file.write('{"round": 1, "vers')
    assert len(ledger.read()) == 4
    ledger.rewind(0, -1, 1)
    assert audit(ledger.read()) == Account(started=2, finished=1, trained=0, restarts=1)
    ledger.write(round=0, version=0, started=[2, 3], finished=[0, 2])
    assert len(ledger.read()) == 3, "nothing is left of the line that was cut off"
    ledger.write(died="ended with code -9", redo=[1])
    ledger.rewind(0, 0, 1)
    assert audit(ledger.read()) == Account(started=4, finished=3, trained=0, restarts=1), "that death was later"
    ledger.path.write_text('{"round": "x"}\n[1]\n' + "[" * 100_000 + "\n\xff\n", encoding="latin-1")
    assert ledger.read() == []


@pytest.mark.slow
def test_a_hundred_steps_with_the_engine_killed_three_times(small_run, monkeypatch):
    """The soak: real processes, killed three times, frozen once; all sequences accounted for, no number changed."""
    options = [
        *AHEAD,
        *("--steps", "100", "--checkpoint.every", "25", "--evaluation.every", "0", "--batch.prompts", "2"),
        *("--async.timeout", "30", "--async.restarts", "20"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_EngineProcess", here())
        calm, _ = small_run("calm", *options)
    calls = 0

    def hurt():
        nonlocal calls
        calls += 1
        if calls in (20, 45, 75, 90):
            (engine,) = multiprocessing.active_children()
            os.kill(engine.pid, signal.SIGSTOP if calls == 45 else signal.SIGKILL)
        return False

    folder, summary = small_run("soak", *options, stop=hurt)
    account = audit(Ledger(folder.ledger).read())
    # A starved machine may find more engines too slow than the one that was frozen.
    assert account.trained == 100 * 8 and account.restarts >= 4 and summary["finished"]
    assert summary["sequences"]["trained"] == 800
    seen = [
        record.sequence_id
        for step in range(1, 101)
        for record in read_rollouts(folder.path / "rollouts" / f"step_{step:04d}.parquet")
    ]
    assert seen == list(range(800))
    reasons = [entry["died"] for entry in Ledger(folder.ledger).read() if "died" in entry]
    assert reasons.count("ended with code -9") == 3
    assert set(reasons) == {"ended with code -9", "gave no answer for 30 seconds"}
    assert max(record["policy_lag"] for record in folder.read_metrics()[1:]) == 4
    assert all(math.isfinite(record["loss"]) for record in folder.read_metrics()[1:])
    assert not multiprocessing.active_children()
    assert numbers(calm) == numbers(folder) and weights(calm) == weights(folder)

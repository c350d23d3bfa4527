"""The guard: quiet on a healthy run, alarms once they last, a halt with its page, and a run that survives it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from holdfast.audit.judge.course import numerics
from holdfast.audit.measure.levels import levels
from holdfast.audit.simulate import FAULTS, clean_run
from holdfast.errors import ConfigError
from holdfast.guard import guard as module
from holdfast.guard.guard import Guard
from holdfast.guard.settings import GuardSettings
from holdfast.rollout.store import write_rollouts


def made(tmp_path, rollouts=None, **settings):
    given = {"every": 1, "confirm": 2} | settings
    return Guard(GuardSettings.of(given), tmp_path / "out", "Holdfast", rollouts=rollouts)


def healthy(step, rng):
    """A run that learns, as our trainer names its numbers."""
    return {
        "step": step,
        "reward_mean": 0.2 + 0.005 * step + rng.normal(0, 0.02),
        "entropy": 0.8 * np.exp(-step / 400) * np.exp(rng.normal(0, 0.05)),
        "kl_exact_mean": 3e-4 * np.exp(rng.normal(0, 0.1)),
        "grad_norm": 0.5 * np.exp(rng.normal(0, 0.2)),
        "response_length_mean": 200 + rng.normal(0, 10),
        "learning_rate": 1e-4,
        "loss": rng.normal(0, 0.01),
    }


def fed(guard, steps, change=lambda step, record: None, seed=0):
    rng, looks = np.random.default_rng(seed), []
    for step in range(1, steps + 1):
        record = healthy(step, rng)
        change(step, record)
        guard.numbers(step, record)
        looks.append(guard.look(step))
    return looks


def drifts(step, record):
    """The mismatch of engine and trainer is a hundredfold from step 60 on."""
    if step >= 60:
        record["kl_exact_mean"] *= 100


@pytest.mark.slow
def test_a_healthy_run_has_no_alarm(tmp_path):
    looks = fed(made(tmp_path, halt_on="warning"), 150)
    assert not any(look.alarms or look.halt or look.said or look.page for look in looks)
    assert {look.values["guard/worst"] for look in looks} == {0.0}
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_drift_is_an_alarm_once_it_lasts_and_is_told_once(tmp_path):
    looks = fed(made(tmp_path), 110, drifts)
    fresh = [(look.step, finding.name) for look in looks for finding in look.fresh if finding.name == "mismatch"]
    assert 60 <= fresh[0][0] <= 85
    assert len(fresh) <= 3  # not at every look
    assert looks[-1].values["guard/mismatch"] >= 1.0
    assert not any(look.halt for look in looks)


def test_what_the_run_has_done_before_is_no_alarm(tmp_path, monkeypatch):
    """The reward swings by .3 over 100 steps: while it is down, only the swings before tell that this is its way."""
    asked = []
    monkeypatch.setattr(Guard, "_audit", lambda guard: asked.append(guard._course().finite("reward")))
    swings = made(tmp_path, every=20)
    for step in range(1, 621):
        swings.numbers(step, {"step": step, "reward_mean": 0.5 + 0.3 * np.sin(step * np.pi / 50)})
        swings.look(step)
    seen = [levels(series) for series in asked]
    fell = [found.fell_from_peak() for found in seen]
    assert any(found.peak - found.last > 0.4 for found in seen[15:])
    assert not any(fell[15:])
    forgetful = [levels(replace(series, past=None, memory=0.0)).fell_from_peak() for series in asked[15:]]
    assert any(forgetful), "the window alone would not know"
    course = swings._course()
    assert len(course.series["reward"]) == 100 and len(course.series["reward"].past) == 520
    assert course.series["reward"].memory == module.MEMORY


@pytest.mark.slow
def test_a_finding_must_be_there_at_several_looks(tmp_path):
    first = [next(look.step for look in fed(made(tmp_path, confirm=n), 110, drifts) if look.alarms) for n in (1, 4)]
    assert first[1] == first[0] + 3


@pytest.mark.slow
def test_it_halts_where_it_is_told_to_and_leaves_the_evidence(tmp_path):
    looks = fed(made(tmp_path, halt_on="critical"), 110, drifts)
    halted = next(look for look in looks if look.halt)
    assert any(finding.severity == "critical" for finding in halted.alarms)
    assert halted.page is not None and "mismatch" in halted.page.read_text(encoding="utf-8")
    said = json.loads((halted.page.parent / "report.json").read_text(encoding="utf-8"))
    assert "mismatch" in {finding["name"] for finding in said["findings"]}


def test_not_a_number_needs_no_first_steps(tmp_path):
    def breaks(step, record):
        if step >= 5:
            record["loss"] = float("nan")

    looks = fed(made(tmp_path, first=20), 15, breaks)
    assert {finding.name for look in looks for finding in look.alarms} == {"not_finite"}
    assert not fed(made(tmp_path, first=20), 19, drifts)[-1].alarms


def test_the_first_steps_stay_and_memory_does_not_grow(tmp_path):
    guard = made(tmp_path, first=10, last=20, every=1000)
    fed(guard, 500)
    assert max(map(len, guard._points.values())) <= 2 * 30
    assert guard._course().series["reward"].steps.tolist() == [*range(1, 11), *range(481, 501)]


def test_a_check_that_raises_is_said_once_and_the_run_goes_on(tmp_path, monkeypatch):
    def broken(*given, **named):
        raise ZeroDivisionError("a planted bug")

    monkeypatch.setattr(module, "ScalarLog", broken)
    looks = fed(made(tmp_path, halt_on="warning"), 40, drifts)
    said = [text for look in looks for text in look.said]
    assert len(said) == 1
    assert "ZeroDivisionError: a planted bug" in said[0] and "the run goes on" in said[0]
    assert not any(look.halt for look in looks)
    assert numerics.CHECKS


@pytest.mark.slow
def test_rollouts_are_looked_at_as_they_are_written(tmp_path):
    folder = tmp_path / "rollouts"
    folder.mkdir()
    guard = made(tmp_path, rollouts=folder, confirm=1, halt_on="critical")
    fault, looks = FAULTS["nan"], []
    for step in range(1, 5):
        rollouts = clean_run(step, steps=1, prompts=8, group_size=4, mean_length=40)
        if step >= 3:
            rollouts = fault.apply(rollouts, fault.strengths[-1], np.random.default_rng(step))
        write_rollouts(folder / f"step_{step}.parquet", rollouts)
        guard.numbers(step, {"step": step})
        looks.append(guard.look(step))
    assert [look.halt for look in looks] == [False, False, True, True]
    assert {finding.name for finding in looks[2].alarms} == {"invalid_logprobs"}


def test_a_file_that_is_being_written_waits(tmp_path):
    folder = tmp_path / "rollouts"
    folder.mkdir()
    write_rollouts(tmp_path / "whole", clean_run(0, steps=1, prompts=8, group_size=4, mean_length=40))
    (folder / "step_1.parquet").write_bytes((tmp_path / "whole").read_bytes()[:-20])
    guard = made(tmp_path, rollouts=folder)
    assert guard.look(1).said == () and not guard._read
    (folder / "step_1.parquet").write_bytes((tmp_path / "whole").read_bytes())
    guard.look(2)
    assert len(guard._read) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"first": 3}, r"guard\.first = 3: a whole number of at least 8"),
        ({"every": 0}, r"guard\.every = 0: a whole number of at least 1"),
        ({"halt_on": "info"}, r"guard\.halt_on = 'info': allowed are never, critical, warning"),
        ({"brake": "certificate"}, r"guard\.brake: this trainer cannot take a step back: .* `holdfast train`"),
        ({"halton": "critical"}, r"guard\.halton is no setting of the guard; did you mean halt_on"),
    ],
)
def test_bad_settings_are_named(given, said):
    with pytest.raises(ConfigError, match=said):
        GuardSettings.of(given)

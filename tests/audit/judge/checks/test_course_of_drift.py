"""Drift at a response's start, saw-teeth over steps, weights that go back, and a reward that pays for giving up."""

import dataclasses

import numpy as np
import pytest

from holdfast.audit.judge.checks.credit.short_paid import ShortPaid
from holdfast.audit.judge.checks.drift.drift_at_start import DriftAtStart
from holdfast.audit.judge.checks.drift.drift_with_step import DriftWithStep, saw_teeth
from holdfast.audit.judge.checks.training.versions_go_back import VersionsGoBack
from holdfast.types import Rollout

QUIET = {"flips": 0.0, "noise": 0.02, "update": 0.02, "age": 0}


@pytest.mark.slow
def test_drift_that_fades_from_the_start(look, faulty, healthy):
    (got,) = look(DriftAtStart, faulty("fading", 0.3, **QUIET))
    assert got.headline.startswith("the first 8 tokens of a response drift")
    assert got.evidence["KL, first tokens"] > 10 * got.evidence["KL, later ones"]
    assert look(DriftAtStart, healthy(**QUIET)) == []
    assert look(DriftAtStart, faulty("drift_with_depth", 0.2, **QUIET)) == []
    assert look(DriftAtStart, faulty("drift_level", 0.3, **QUIET)) == []


def test_the_start_by_numbers(look):
    def rollout(i):
        size = np.where(np.arange(100) < 16, 0.3, 0.1) * np.random.default_rng(i).choice([-1, 1], 100)
        return Rollout((i,), tuple(range(100)), (-1.0,) * 100, tuple((-1 + size).tolist()))

    (got,) = look(DriftAtStart, [rollout(i) for i in range(200)])
    assert got.headline.startswith("the first 8 tokens of a response drift 3.0 times as much as those from 64 on")
    # k3 of ±r is cosh r - 1 in the mean: .0453 and .0050
    assert got.evidence["KL, first tokens"] == pytest.approx(np.cosh(0.3) - 1, rel=0.1)
    assert got.evidence["KL, later ones"] == pytest.approx(np.cosh(0.1) - 1, rel=0.05)


def test_teeth():
    noise = 0.02 * np.random.default_rng(0).normal(size=24)
    rising = np.tile(np.linspace(0, 1, 12), 2)
    assert saw_teeth(rising + noise) == [12]
    assert saw_teeth(np.tile(np.linspace(0, 1, 6), 4) + noise) == [6, 12, 18]
    assert saw_teeth(np.linspace(0, 2, 24) + noise) == []
    assert saw_teeth(noise) == []
    assert saw_teeth(np.where(np.arange(24) == 9, 1.0, 0.0) + noise) == []  # one bad step
    assert saw_teeth(np.repeat([1.0, 0.0], 12) + noise) == []  # a fall, and no rise
    assert saw_teeth(-rising + noise) == []
    assert saw_teeth(np.zeros(0)) == saw_teeth(np.zeros(1)) == []


@pytest.mark.slow
def test_a_saw_tooth_is_told_once(look, faulty):
    (got,) = look(DriftWithStep, faulty("saw_tooth", 0.3, steps=24, prompts=3, **QUIET))
    assert "at step 13, and rises again" in got.headline
    assert got.where.steps == (13,)
    assert "prefix cache" in got.fix


def versioned(versions, **more):
    """One rollout for each (step, version) pair; a pair's version may be two: the first token's and the last's."""
    return [
        Rollout((i,), (1, 2), step=step, weight_versions=v if isinstance(v, tuple) else (v, v), **more)
        for i, (step, v) in enumerate(versions)
    ]


@pytest.mark.slow
def test_versions_that_go_back(look, faulty, healthy):
    (got,) = look(VersionsGoBack, faulty("old_weights_again", 4.0, age=0))
    assert got.headline == (
        "weight versions go back: from step 5 on rollouts are of weight version 0 at the newest, after version 3 had "
        "been used"
    )
    assert got.where.steps == (5, 6, 7, 8)
    assert look(VersionsGoBack, faulty("old_weights_again", 1.0, age=0)) == []
    for age in (0, 1, 2):
        assert look(VersionsGoBack, healthy(age=age)) == []


def test_what_is_no_way_back(look):
    stale = [(1, 0), (1, 1), (2, 2), (3, 1), (4, 1), (5, 3)]  # rollouts of one step are a version apart
    assert look(VersionsGoBack, versioned(stale)) == []
    assert len(look(VersionsGoBack, versioned([(1, 5), (2, 6), (3, 2), (4, 2)]))) == 1
    assert look(VersionsGoBack, versioned([(1, 5), (2, 6), (3, 2), (4, 7)])) == []  # one step of old ones


def test_versions_that_fall_within_responses(look):
    (got,) = look(VersionsGoBack, versioned([(1, (3, 2))] * 3))
    assert got.headline == (
        "weight versions go back: in 3 responses the weight version falls from one token to a later one"
    )
    assert look(VersionsGoBack, versioned([(1, (3, 2))] * 2 + [(1, (2, 3))] * 5)) == []


def test_a_default_reward(look, faulty, healthy):
    (got,) = look(ShortPaid, faulty("default_reward", 0.9))
    assert got.severity == "critical"
    assert got.headline.endswith("the reward pays for not trying")
    assert got.evidence["reward, short responses"] == 0
    assert got.evidence["reward, others"] < -0.5
    assert look(ShortPaid, healthy()) == []
    assert look(ShortPaid, healthy(uneven=True)) == []


@pytest.mark.parametrize("what", ["pays", "steady", "sometimes wrong", "worse", "long"])
def test_what_is_no_giving_up(look, what):
    rng = np.random.default_rng(0)

    def rollout(step):
        share = 0.5 if what == "steady" else 0.1 + 0.1 * step
        if rng.random() >= share:
            return Rollout((1,), (1,) * 100, reward=-1.0, step=step)
        reward = {"sometimes wrong": float(rng.random() < 0.8), "worse": -2.0}.get(what, 0.0)
        return Rollout((1,), (1,) * (70 if what == "long" else 10), reward=reward, step=step)

    run = [rollout(step) for step in range(8) for _ in range(40)]
    assert len(look(ShortPaid, run)) == (what == "pays")
    assert look(ShortPaid, [dataclasses.replace(r, reward=1.0) for r in run]) == []

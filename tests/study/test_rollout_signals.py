"""The audit's numbers of each step of a run: golden values with their arithmetic, and the files they come from."""

import dataclasses
import math

import numpy as np
import pytest

from holdfast.rollout.store import write_rollouts
from holdfast.study.rollout_signals import KEYS, rollout_signals
from holdfast.types import Rollout


def rollout(i, weights, advantage, step, engine=-0.5):
    """A response whose tokens have these weights p(trainer) / p(engine)."""
    n = len(weights)
    return Rollout(
        (i, 1),
        tuple(range(n)),
        (engine,) * n,
        tuple(engine + math.log(w) for w in weights),
        advantages=(advantage,) * n,
        step=step,
        group_id=i,
    )


@pytest.fixture
def logged(tmp_path):
    """Writes the rollouts of steps as a run does. -> the run's folder"""

    def write(*steps):
        (tmp_path / "rollouts").mkdir()
        for rollouts in steps:
            write_rollouts(tmp_path / "rollouts" / f"step_{rollouts[0].step:04d}.parquet", rollouts)
        return tmp_path

    return write


def test_each_step_has_its_own_numbers(logged):
    quiet = [rollout(0, [1.0] * 4, 1.0, 1), rollout(1, [1.0] * 4, -1.0, 1)]
    # one token at e^-3.2 = 1/24.5 of an engine's exp(-.5) = .61; the good answer's other weights are 1, 1.5 and .5
    loud = [rollout(0, [1.0, 1.5, 0.5, math.exp(-3.2)], 2.0, 2), rollout(1, [1.1, 0.9, 1.0, 1.0], -1.0, 2)]
    found = rollout_signals(logged(quiet, loud))
    assert list(found) == [1, 2]
    assert found[1] == {"beyond_20": 0, "confident_disagreement": 0, "effective_share": 1, "signed_skew": 0}
    assert found[2]["beyond_20"] == found[2]["confident_disagreement"] == 1 / 8
    # Σ (w - 1) A / Σ |A| of A > 0: (0 + .5 - .5 - (1 - e^-3.2)) / 4; of A < 0: 0
    assert found[2]["signed_skew"] == pytest.approx((1 - math.exp(-3.2)) / 4, abs=1e-6)
    weights = np.array([1, 1.5, 0.5, math.exp(-3.2), 1.1, 0.9, 1, 1])
    assert found[2]["effective_share"] == pytest.approx(weights.sum() ** 2 / (8 * (weights**2).sum()), abs=1e-6)


def test_a_confident_disagreement_needs_a_sure_engine(logged):
    found = rollout_signals(logged([rollout(0, [math.exp(-2.5)] * 4, 1.0, 1, engine=-1.0)]))[1]
    # e^-2.5 is a factor of 12; an engine at e^-1 = .37 was not sure
    assert (found["beyond_20"], found["confident_disagreement"]) == (0, 0)


def test_pareto_k_tells_a_heavy_tail_from_a_light_one(logged):
    rng = np.random.default_rng(0)
    heavy, light = rng.pareto(1 / 1.2, 1000) + 1, 1 + 0.1 * rng.random(1000)
    chunks = [
        [rollout(i, w, 1.0, step, engine=-30.0) for i, w in enumerate(np.split(all_of, 50))]
        for step, all_of in ((1, heavy), (2, light))
    ]
    found = rollout_signals(logged(*chunks))
    # Pareto with exponent 1 / k: k = 1.2, of 94 values beyond the threshold, drawn to .5; a bounded tail has k < 0
    assert 0.8 < found[1]["pareto_k"] < 1.6 and found[2]["pareto_k"] < 0.3
    assert set(found[1]) == set(KEYS)


def test_a_run_without_rollouts_or_without_both_sides_says_nothing(logged, tmp_path):
    assert rollout_signals(tmp_path) == {}
    one_sided = dataclasses.replace(rollout(0, [1.0] * 4, 1.0, 1), trainer_logprobs=None)
    assert rollout_signals(logged([one_sided])) == {1: {}}

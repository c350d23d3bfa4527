"""The uniform sample is uniform and bounded; the worst are the worst."""

import numpy as np

from holdfast.audit.measure.sample import WORST, Sample
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import pack
from holdfast.types import Rollout


def feed(sample, rollouts, tokens=500):
    first = 0
    for chunk in pack(rollouts, tokens):
        sample.update(View(chunk, first))
        first += len(chunk)
    return sample


def run(count, length=10):
    rng = np.random.default_rng(0)
    for i in range(count):
        drift = float(rng.random())
        yield Rollout((i,), tuple(range(length)), (-2.0,) * length, (-2.0 - drift,) + (-2.0,) * (length - 1), step=i)


def test_a_small_run_is_kept_whole():
    kept = [*feed(Sample(tokens=10_000), run(100)).uniform()]
    assert [number for number, _ in kept] == list(range(100))
    assert all(rollout.step == number for number, rollout in kept)


def test_a_large_run_is_sampled_evenly_in_bounded_memory():
    kept = np.array([number for number, _ in feed(Sample(tokens=2000), run(4000)).uniform()])
    assert 190 <= len(kept) <= 201
    quarters = np.bincount(kept // 1000, minlength=4)
    assert quarters.min() > 25  # 50 expected, standard deviation 6
    assert quarters.max() < 75


def test_the_same_run_gives_the_same_sample():
    first, second = ([*feed(Sample(tokens=2000), run(1000)).uniform()] for _ in range(2))
    assert first == second


def test_the_worst_are_the_worst():
    rollouts = list(run(1000))
    drift = [abs(r.trainer_logprobs[0] - r.rollout_logprobs[0]) for r in rollouts]
    expected = sorted(range(1000), key=lambda i: -drift[i])[:WORST]
    worst = feed(Sample(), rollouts).worst()
    assert {number for number, _ in worst} == set(expected)
    assert worst[0][0] == expected[0]

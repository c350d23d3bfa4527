"""Pareto's k on known tails, quantiles from what is kept, rates and the signed skew by their arithmetic."""

import math

import numpy as np
import pytest

from holdfast.audit.measure.extremes import RATES
from holdfast.audit.measure.statistics.tails import Largest, Tails, pareto_k
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import chunk_of
from holdfast.types import Rollout


def kept(values, most=20_000):
    largest = Largest(most)
    for part in np.array_split(values, 7):
        largest.add(part)
    return largest


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9, 1.5])
def test_the_k_of_pareto_weights(k):
    # exp(k E) with E standard exponential is Pareto's with index 1 / k; its excesses are generalised Pareto of k.
    got = pareto_k(kept(k * np.random.default_rng(0).exponential(size=100_000)))
    assert got.low < k < got.high
    assert got.value == pytest.approx(k, abs=0.1)
    # M = 3 √100,000 = 948 values: the width is 1.96 (1 + k) / √948
    assert got.high - got.value == pytest.approx(1.96 * (1 + got.value) / math.sqrt(948), rel=0.01)


def test_weights_without_a_tail():
    light = pareto_k(kept(np.log(np.random.default_rng(1).uniform(0.5, 1.5, 50_000))))
    assert light.value < 0
    assert pareto_k(kept(np.zeros(1000))) is None
    assert pareto_k(kept(np.arange(100) / 100)) is None  # 20 values are beyond


def test_the_k_by_another_estimator():
    """Hill's estimator on the same values, which needs no location: within its error."""
    values = np.random.default_rng(2).standard_t(3, 200_000)
    weights = np.log(np.maximum(values, 1e-9))
    top = np.sort(values)[-1342:]
    hill = float(np.log(top[1:] / top[0]).mean())
    assert pareto_k(kept(weights)).value == pytest.approx(hill, abs=0.12)


def test_quantiles_of_what_is_kept():
    largest = kept(np.random.default_rng(0).permutation(10_000.0 + np.arange(100_000)), most=500)
    assert largest.count == 100_000
    assert largest.quantile(0.999) == 10_000 + 99_900
    assert largest.quantile(0.9999) == 10_000 + 99_990
    assert largest.quantile(0.99) is None  # a thousand are above, 500 are kept
    assert largest.quantile(0.999999) is None


def tails_of(*rollouts):
    tails = Tails()
    for r in rollouts:
        tails.update(View(chunk_of([r])))
    return tails


def rollout(i, ratios, advantage=None, engine=-0.5):
    n = len(ratios)
    return Rollout(
        (i,),
        tuple(range(n)),
        (engine,) * n,
        tuple(engine + r for r in ratios),
        advantages=None if advantage is None else (advantage,) * n,
    )


def test_rates_of_extreme_tokens():
    # Ratios: e^-.8 is beyond 2, e^-2 beyond 5, e^-4 beyond 20; the last two are confident disagreements at p = e^-.5.
    tails = tails_of(*[rollout(i, [0.1] * 7 + [-0.8, -2.1, -4.0]) for i in range(20)])
    assert [tails.rate(name).value for name in RATES] == pytest.approx([0.3, 0.2, 0.1, 0.2])
    unsure = tails_of(*[rollout(i, [-4.0, 0.1], engine=-1.0) for i in range(20)])
    assert unsure.rate("confident disagreement") == unsure.rate("confident disagreement").__class__(
        0.0, 0.0, 1 - 0.025 ** (1 / 40)
    )
    assert Tails().rate("beyond 2") is None


def test_the_signed_skew():
    # w - 1 = e^.1 - 1 = .1052 on A = 2, and e^-.1 - 1 = -.0952 on A = -1.
    runs = [rollout(i, [0.1] * 4, 2.0) for i in range(10)] + [rollout(i, [-0.1] * 4, -1.0) for i in range(10, 20)]
    tails = tails_of(*runs)
    assert tails.signed_skew("positive").value == pytest.approx(-2 * (math.exp(0.1) - 1), rel=1e-4)
    assert tails.signed_skew("negative").value == pytest.approx(math.exp(-0.1) - 1, rel=1e-4)
    assert tails_of(rollout(0, [0.1])).signed_skew("positive") is None


def test_sequences_and_both_sides():
    tails = tails_of(*[rollout(i, [0.3, -0.1, 0.2]) for i in range(30)])
    assert tails.above.count == tails.below.count == 90
    assert len(tails.above.kept) == 60
    assert len(tails.below.kept) == 30
    assert tails.sequences.count == 30
    assert tails.sequences.kept == pytest.approx(np.full(30, 0.4), abs=1e-5)

"""Means with intervals over prompts, and quantiles from a histogram, against exact computations."""

import numpy as np
import pytest

from holdfast.audit.measure.binned import Binned, Sizes, power_bin
from holdfast.audit.measure.tokens import FOLDS


def test_mean_per_bin_is_exact():
    binned = Binned(3)
    binned.add(np.array([0, 1, 2, 5]), np.array([0, 0, 2, 2]), np.array([1.0, 3.0, 5.0, 6.0]))
    binned.add(np.array([7]), np.array([0]), np.array([8.0]))
    assert binned.count().tolist() == [3, 0, 2]
    assert binned.mean()[[0, 2]].tolist() == [4.0, 5.5]
    assert np.isnan(binned.mean()[1])


def test_interval_covers_the_mean_of_clustered_data():
    """Values of one prompt are nearly equal: an interval that took them as independent would be a seventh of it."""
    rng, covered, widths = np.random.default_rng(1), 0, []
    for _ in range(200):
        prompt = rng.normal(0, 1, 640)
        values = np.repeat(prompt, 50) + rng.normal(0, 0.1, 32000)
        binned = Binned(1)
        binned.add(np.repeat(np.arange(640) % FOLDS, 50), np.zeros(32000, int), values)
        got = binned.estimate()
        covered += got.low <= 0 <= got.high
        widths.append(got.high - got.low)
    assert 180 <= covered <= 199  # 95 % of 200 is 190, standard deviation 3.1
    assert np.mean(widths) == pytest.approx(2 * 1.96 / 640**0.5, rel=0.1)


def test_a_single_fold_has_no_interval():
    binned = Binned(1)
    binned.add(np.zeros(10, int), np.zeros(10, int), np.ones(10))
    got = binned.estimate()
    assert (got.value, got.low, got.high) == (1.0, -np.inf, np.inf)


def test_a_statistic_of_bins():
    binned = Binned(2)
    fold = np.arange(FOLDS)
    binned.add(fold, np.zeros(FOLDS, int), np.full(FOLDS, 2.0))
    binned.add(fold, np.ones(FOLDS, int), np.full(FOLDS, 6.0))
    got = binned.estimate(lambda means: means[..., 1] / means[..., 0])
    assert (got.value, got.low, got.high) == (3.0, 3.0, 3.0)


def test_quantiles_to_three_percent():
    values = np.random.default_rng(0).lognormal(-4, 2, 200_000)
    sizes = Sizes()
    sizes.add(values[:1000])
    sizes.add(values[1000:])
    for share in (0.01, 0.5, 0.9, 0.999):
        assert sizes.quantile(share) == pytest.approx(np.quantile(values, share), rel=0.03)


def test_quantiles_of_nothing_and_of_zeros():
    sizes = Sizes()
    assert np.isnan(sizes.quantile(0.5))
    sizes.add(np.zeros(10))
    assert sizes.quantile(0.99) < 1e-37


def test_powers_of_two():
    assert power_bin(np.array([0, 1, 2, 3, 4, 7, 8, 1 << 30]), 10).tolist() == [0, 1, 2, 2, 3, 3, 4, 9]

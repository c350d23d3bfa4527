"""Growth by hand, Student's quantiles and Kendall's test against scipy, and how often chance alone is called growth."""

import numpy as np
import pytest
from scipy import stats

from holdfast.audit.measure.contrast import UNKNOWN, Groups, Growth, growth, student_quantile, trend_chance
from holdfast.audit.measure.stretches import CLASSES
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import chunk_of
from holdfast.types import Rollout


def units(counts, means):
    """The same condition counts and means in each of ten units."""
    counts = np.tile(np.asarray(counts, float), (10, 1))
    return counts * np.asarray(means), counts


def test_growth_is_taken_at_equal_conditions():
    """Certain tokens drift .01 and uncertain ones .10 in both groups; only the second group's mix differs, 3 : 1.

    Raw means: (100·.01 + 300·.1)/400 = .0775 against (300·.01 + 100·.1)/400 = .0325, 2.4 times. At equal conditions: 1.
    """
    got = growth(units([300, 100], [0.01, 0.10]), units([100, 300], [0.01, 0.10]))
    assert got.value == pytest.approx(1.0)
    assert got.deviation == pytest.approx(0, abs=1e-12)


def test_growth_by_hand():
    """Weights n_A n_B/(n_A + n_B): 300·100/400 = 75 both. (75·.04 + 75·.1)/(75·.01 + 75·.1) = 10.5/8.25."""
    got = growth(units([300, 100], [0.01, 0.10]), units([100, 300], [0.04, 0.10]))
    assert got.value == pytest.approx(10.5 / 8.25)


def test_a_condition_of_one_group_alone_does_not_count():
    got = growth(units([500, 0, 100], [0.01, 0, 9.0]), units([500, 200, 0], [0.02, 5.0, 0]))
    assert got.value == pytest.approx(2.0)


def test_too_little_to_say():
    assert growth(units([99], [1.0]), units([500], [2.0])) == UNKNOWN  # 990 tokens
    sums, counts = units([900], [1.0])
    few = growth((sums[:5], counts[:5]), (3 * sums[:5], counts[:5]))
    assert few.value == pytest.approx(3.0)
    assert few.units == 5
    assert not few.surely_above(1.0)


def test_the_interval_is_that_of_student():
    """deviation .1 over 9 units: 8 degrees of freedom, t(.975) = 2.306: 2·exp(±.2306)."""
    got = Growth(2.0, 0.1, 9).estimate()
    assert (got.low, got.high) == pytest.approx((2 * np.exp(-0.2306), 2 * np.exp(0.2306)), rel=1e-3)
    assert Growth(2.0, 0.1, 9).surely_above(1.2)  # t(.999) = 4.50: 2·exp(-.45) = 1.275
    assert not Growth(2.0, 0.1, 9).surely_above(1.3)


@pytest.mark.parametrize(("share", "freedom"), [(0.975, 5), (0.975, 30), (0.999, 8), (0.999, 63), (0.5, 7)])
def test_student(share, freedom):
    assert student_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=0.02, abs=1e-9)


def test_a_trend_by_kendall():
    """Six rising values: S = 15, spread √(6·5·17/18) = 5.323, z = 14/5.323 = 2.630: .0043."""
    assert trend_chance(np.arange(6.0)) == pytest.approx(0.00427, rel=0.01)
    assert trend_chance(-np.arange(6.0)) == pytest.approx(1 - 0.00427, rel=0.01)
    assert trend_chance(np.array([1.0, 2.0])) == 1.0
    rng = np.random.default_rng(1)
    for _ in range(5):
        values = rng.normal(size=40) + 0.02 * np.arange(40)
        wanted = stats.kendalltau(np.arange(40), values, alternative="greater", method="asymptotic").pvalue
        assert trend_chance(values) == pytest.approx(wanted, abs=0.01)  # it makes no step for continuity


def test_chance_is_rarely_called_growth():
    """Units that differ by e^±.5 and ten tokens each that agree: a test at 1 in 1,000 errs in at most 6 of 2,000."""
    rng = np.random.default_rng(2)
    errors = 0
    for _ in range(2000):
        counts = np.full((10, 1), 200.0)
        first, second = np.exp(0.5 * rng.normal(size=(2, 10, 1)))
        errors += growth((counts * first, counts), (counts * second, counts)).surely_above(1.0)
    assert errors <= 6


def test_unpaired_groups_are_drawn_apart():
    sums, counts = units([500], [0.01])
    sums = sums * np.exp(np.random.default_rng(3).normal(size=(10, 1)))
    assert growth((sums, counts), (2 * sums, counts)).deviation == pytest.approx(0, abs=1e-9)
    assert growth((sums, counts), (2 * sums, counts), paired=False).deviation > 0.2


def test_groups_keep_folds_apart_and_leave_negative_groups_out():
    rollouts = [Rollout((i,), (1,) * 8, (-1.0,) * 8, (-1.1,) * 8, group_id=i, step=0) for i in range(30)]
    view = View(chunk_of(rollouts))
    groups = Groups(2)
    groups.add(view, np.where(view.stretches.sequence < 10, -1, view.stretches.quarter % 2))
    assert groups.tokens().tolist() == [80, 80]  # 20 sequences of 8 tokens, quarters 0 and 2, 1 and 3
    assert groups.sums.sum() == pytest.approx(16.0, rel=1e-5)
    assert groups.counts.shape[2] == CLASSES
    assert groups.kl_of([0, 1]) == pytest.approx(np.expm1(-0.1) + 0.1, rel=1e-4)
    assert (groups.units() == len(set(view.fold[10:].tolist()))).all()

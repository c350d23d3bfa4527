"""Levels of series whose first and last value, noise and change are known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from holdfast.audit.course import Series
from holdfast.audit.measure.levels import CERTAIN, FEWEST_STEPS, change_point, levels, spikes


def series(values, errors=None):
    return Series(np.arange(1, len(values) + 1), np.asarray(values, float), errors)


def test_a_step_function():
    """Ten of 1 and ten of 3: parts of 20 // 5 = 4; no noise, so any difference is certain."""
    found = levels(series([1] * 10 + [3] * 10))
    assert (found.first, found.last, found.peak, found.trough) == (1, 3, 3, 1)
    assert found.changed == 11
    assert found.rose(1.9)
    assert not found.rose(2.0)
    assert not found.fell()


def test_the_error_is_that_of_two_means():
    """White noise of deviation 1: parts of 200 // 5 = 40, error √(2 / 40) = .224."""
    errors = [levels(series(np.random.default_rng(seed).normal(size=200))).error for seed in range(20)]
    assert math.sqrt(2 / 40) * 0.8 < np.mean(errors) < math.sqrt(2 / 40) * 1.5


def test_memory_widens_the_error():
    """AR(1) of .9 has a long-run deviation √((1 + .9) / (1 - .9)) = 4.4 times its own."""
    rng = np.random.default_rng(0)
    white, out = rng.normal(size=1000), np.zeros(1000)
    for i in range(1, 1000):
        out[i] = 0.9 * out[i - 1] + math.sqrt(1 - 0.81) * white[i]
    assert levels(series(out)).error > 2.5 * levels(series(white)).error


@pytest.mark.parametrize(("memory", "most", "counted"), [(0.6, 0.8, 0.6), (0.95, 0.8, 0.8), (0.0, 0.8, 0.0)])
def test_slow_noise_counts_as_noise_where_memory_is_allowed_for(memory, most, counted):
    """AR(1) noise of deviation 1: γ₁ = 1 - ρ, so s = √((1 - ρ) (1 + c)) / (1 - c) with c = ρ, or what is allowed."""
    rng = np.random.default_rng(0)
    white, out = rng.normal(size=1000), np.zeros(1000)
    for i in range(1, 1000):
        out[i] = memory * out[i - 1] + math.sqrt(1 - memory**2) * white[i]
    found = levels(replace(series(out), memory=most)).error / math.sqrt(2 / 200)
    expected = math.sqrt((1 - memory) * (1 + counted)) / (1 - counted)
    assert found == pytest.approx(max(expected, levels(series(out)).error / math.sqrt(2 / 200)), rel=0.15)
    assert levels(replace(series([1.0] * 10), memory=most)).error == 0.0


def test_a_trend_counts_as_no_more_memory_than_is_allowed_for():
    """A straight line: γ₁ = 1/2, γ₂ = 2, so ρ = 3, which is cut to .5: s = √(1.5 / 2) / .5."""
    line = Series(np.arange(1.0, 41.0), np.arange(40.0), memory=0.5)
    assert levels(line).error == pytest.approx(math.sqrt(0.75) / 0.5 * math.sqrt(2 / 8))


def test_given_errors_are_a_floor():
    """Equal values with standard errors .5: parts of 3, error .5 · √(2 / 3)."""
    found = levels(series([1.0] * 5 + [1.5] * 5, np.full(10, 0.5)))
    assert found.error == pytest.approx(0.5 * math.sqrt(2 / 3))
    assert not found.rose()


def test_what_went_before_is_a_floor():
    """Equal values have no error of their own. Before them 1, -1, ...: |Δ| = 2; twice 1.4826 · 2 / √2 = 2.1."""
    same, before = series([1.0] * 10), np.tile([1.0, -1.0], 30)
    assert levels(same).error == 0
    known = levels(replace(same, past=before)).error
    assert known == pytest.approx(2 * 1.4826 * 2 / math.sqrt(2) * math.sqrt(2 / 3))
    assert levels(replace(same, past=np.append(before, np.nan))).error == pytest.approx(known)
    assert levels(replace(same, past=before[:30])).error == 0, "too few to tell"
    logs = levels(replace(same, past=10.0**before), logs=True).error
    assert logs == pytest.approx(known), "as logarithms, like the values"


def test_a_difference_must_be_more_certain_where_steps_are_few():
    assert levels(series(np.arange(8.0))).needed == CERTAIN * 1.75
    assert levels(series(np.arange(600.0))).needed == CERTAIN * 1.01


def test_logs():
    found = levels(series([1, 1, 1, 1, 1, 100, 100, 100, 100, 0]), logs=True)
    assert found.first == 0
    assert found.last == pytest.approx((2 + 2 + 0) / 3)


def test_short_and_long_series():
    assert levels(series(np.ones(FEWEST_STEPS - 1))) is None
    assert levels(None) is None
    assert levels(series(np.arange(5000.0))).count == 1000


def test_fell_from_the_peak():
    values = np.concatenate([np.linspace(0, 1, 50), np.linspace(1, 0, 50)])
    assert levels(series(values)).fell_from_peak()
    assert not levels(series(np.linspace(0, 1, 100))).fell_from_peak()


def test_change_point_and_spikes():
    assert change_point(np.array([0.0] * 7 + [1.0] * 3)) == 7
    values = np.ones(40)
    values[[5, 20]] = 11, 9
    assert spikes(series(values), 10.0).tolist() == [6]

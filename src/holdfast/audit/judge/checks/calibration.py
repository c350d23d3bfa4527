"""Whether engine and trainer speak of one distribution: slope, and balance of weights, over a whole run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from holdfast.audit.measure.alignment import CALIBRATION
from holdfast.audit.measure.binned import Binned
from holdfast.audit.measure.estimate import Estimate
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

Value = Column | float

LEVEL = 0.998
FEWEST_TOKENS = 1000
FORWARD, BACKWARD, NEARLY_ALL = 0.3, -0.5, -0.85
"""Imbalance of weights beyond which one side's support is truncated."""


class Calibration:
    """Sums over sampled tokens of the moments of both log-probabilities e, t and of weights w = exp(t - e) - 1.

    If e is the log-probability that was sampled with and both policies share a support, E[w] = 0 at every context,
    whatever the drift: what some tokens lose, others gain. So (lost - gained) / (lost + gained) is 0 in a true log,
    has no scale, and is ±1 where all ratios err to one side. It is told apart for ratios within a factor of 2
    (`near`) and beyond (`far`). All methods take means of shape [..., 10].
    """

    def __init__(self) -> None:
        self.sums = Binned(len(CALIBRATION))
        self.tokens = 0.0

    def update(self, view: View, rows: Column | None = None) -> None:
        """Add one chunk, or these rows [N] of it."""
        sums = view.calibration if rows is None else view.calibration * rows[:, None]
        self.sums.add_quantities(view, sums)
        self.tokens += float(sums[:, 0].sum())

    def value(self, statistic: Callable[[Column], Value]) -> float:
        """A statistic of the run."""
        return float(statistic(self.sums.mean()))

    def estimate(self, statistic: Callable[[Column], Value], level: float = LEVEL) -> Estimate:
        """The same with its bootstrap interval over prompts."""
        return self.sums.estimate(statistic, level)


def imbalance(m: Column) -> Value:
    """(lost - gained) / (lost + gained) over all ratios."""
    return -m[..., 6] / (m[..., 7] + 1e-12 * m[..., 0])


def deficit(m: Column) -> Value:
    """Mean weight missing per token, 1 - E[exp(r)]."""
    return -m[..., 6] / m[..., 0]


def far_deficit(m: Column) -> Value:
    """The part of the deficit from ratios beyond a factor of 2."""
    return (m[..., 8] - m[..., 9]) / m[..., 0]


def near_imbalance(m: Column) -> Value:
    """(lost - gained) / (lost + gained) over ratios within a factor of 2."""
    return (-m[..., 6] - m[..., 8] + m[..., 9]) / (m[..., 7] - m[..., 8] - m[..., 9] + 1e-12 * m[..., 0])


def far_imbalance(m: Column) -> Value:
    """(lost - gained) / (lost + gained) over ratios beyond a factor of 2."""
    return (m[..., 8] - m[..., 9]) / (m[..., 8] + m[..., 9] + 1e-12 * m[..., 0])


def covariance(m: Column) -> tuple[Value, Value, Value]:
    """Var(e), Cov(e, t), Var(t)."""
    e, t, ee, et, tt = (m[..., k] / m[..., 0] for k in range(1, 6))
    return np.maximum(ee - e * e, 1e-12), et - e * t, np.maximum(tt - t * t, 1e-12)


def slope(m: Column) -> Value:
    """Of t on e: β times the reliability of e."""
    engine, both, _ = covariance(m)
    return both / engine


def inverse_slope(m: Column) -> Value:
    """One over the slope of e on t: β over the reliability of t."""
    _, both, trainer = covariance(m)
    return trainer / np.where(both > 0, both, np.nan)


def explained(m: Column) -> Value:
    """Share of the variance of t - e that is linear in e."""
    engine, both, trainer = covariance(m)
    return (both - engine) ** 2 / (np.maximum(engine + trainer - 2 * both, 1e-12) * engine)


def exponent(m: Column) -> Value:
    """β of trainer ∝ engine^β to first order: 1 - Var(t - e) / Cov(t - e, -e)."""
    engine, both, trainer = covariance(m)
    return 1 - (engine + trainer - 2 * both) / (engine - both)


def truncated_side(calibration: Calibration) -> str | None:
    """The policy ("engine" or "trainer") that alone is renormalised on a truncated support; None for neither.

    An engine renormalised against a whole trainer only loses weight. The other way round it is gained. So it is when
    the engine logs before a temperature; but one below 1 raises the slope above 1, and with one above 1 the ratios
    follow a straight line more closely and are less one-sided.
    """
    balance, bend = calibration.value(imbalance), calibration.value(inverse_slope)
    if balance > FORWARD and calibration.value(near_imbalance) > FORWARD:
        return "engine"
    straight = calibration.value(explained) > 0.5 and balance > NEARLY_ALL
    return "trainer" if balance < BACKWARD and bend < 1 and not straight else None

"""Means per bin in bounded memory, with intervals: sums are kept per fold of prompts, and folds are resampled.

The interval of any statistic of the bins (a difference, a slope, a ratio) is the bootstrap over FOLDS groups of
prompts, so tokens of one sequence and rollouts of one prompt are never taken for independent.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from holdfast.audit.measure.estimate import Estimate
from holdfast.audit.measure.tokens import FOLDS
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

RESAMPLES = 400


class Binned:
    """Sums and counts of a token or sequence quantity per bin and fold.

    `sums` and `counts` are [FOLDS, bins] in float64; `mean()` is [bins], NaN where a bin is empty.
    """

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self.sums = np.zeros((FOLDS, bins))
        self.counts = np.zeros((FOLDS, bins))

    def add(self, fold: Column, bin_: Column, values: Column) -> None:
        """Add values at (fold, bin); the three arrays have one length. Select before calling: all of it is counted."""
        self._add(fold * self.bins + bin_, values, np.ones(len(values)))

    def add_tokens(self, view: View, bin_: Column, values: Column, where: Column | None = None) -> None:
        """Add flat values of a view at those tokens (default: measured ones).

        `bin_` is flat too; it is fast where it is constant over stretches of a sequence (depth, turn, version).
        """
        if view.chunk.token_count == 0:
            return
        keep = view.measured if where is None else where
        starts = view.runs(bin_)
        place = view.fold[view.sequence[starts]] * self.bins + bin_[starts]
        sums = np.add.reduceat(view.where(keep, values), starts, dtype=np.float64)
        self._add(place, sums, np.add.reduceat(keep, starts, dtype=np.float64))

    def add_sequences(self, view: View, bin_: Column | int, values: Column, where: Column | None = None) -> None:
        """Add flat values of a view at those tokens (default: measured ones), all tokens of a sequence in one bin.

        `bin_` is one number, or [N]: a bin per sequence; sequences with a negative one are left out.
        """
        keep = view.measured if where is None else where
        rows = view.filled if isinstance(bin_, int) else view.filled[bin_[view.filled] >= 0]
        place = view.fold[rows] * self.bins + (bin_ if isinstance(bin_, int) else bin_[rows])
        count = view.sequence_measured if where is None else view.sum(where)
        self._add(place, view.sum(view.where(keep, values))[rows], count[rows])

    def add_quantities(self, view: View, values: Column) -> None:
        """Add [N, bins]: bin k holds the k-th quantity of each sequence, so that ratios of means are ratios of sums."""
        for bin_, column in enumerate(values.T):
            self._add(view.fold * self.bins + bin_, column, np.ones(len(column)))

    def _add(self, place: Column, sums: Column, counts: Column) -> None:
        size = FOLDS * self.bins
        self.sums += np.bincount(place, weights=sums, minlength=size).reshape(FOLDS, self.bins)
        self.counts += np.bincount(place, weights=counts, minlength=size).reshape(FOLDS, self.bins)

    def merge(self, other: Binned) -> None:
        """Add another's sums."""
        self.sums += other.sums
        self.counts += other.counts

    def count(self) -> Column:
        """[bins] how many values each bin has."""
        return self.counts.sum(0)

    def mean(self) -> Column:
        """[bins] mean of each bin."""
        return _ratio(self.sums.sum(0), self.counts.sum(0))

    def estimate(self, statistic: Callable[[Column], Column | float] | None = None, level: float = 0.95) -> Estimate:
        """A statistic of the bins' means (default: the overall mean) with its bootstrap interval.

        `statistic` takes means of shape [..., bins] and reduces the last axis.
        """
        sums, counts = self.sums, self.counts
        if statistic is None:
            sums, counts = sums.sum(1, keepdims=True), counts.sum(1, keepdims=True)
        reduce = statistic or (lambda means: means[..., 0])
        return _bootstrap(lambda sums, counts: reduce(_ratio(sums, counts)), sums, counts, level)

    def estimate_totals(self, statistic: Callable[[Column, Column], Column | float], level: float = 0.95) -> Estimate:
        """A statistic of the bins' sums and counts, both [..., bins]: for means over several bins together."""
        return _bootstrap(statistic, self.sums, self.counts, level)


class Sizes:
    """A histogram of positive numbers over 40 orders of magnitude at 3 % resolution: exact counts, quantiles to 3 %."""

    _SHIFT = 18  # a float32's sign, exponent and five bits of its mantissa remain

    def __init__(self) -> None:
        self.counts = np.zeros(1 << (32 - self._SHIFT), np.int64)

    def add(self, values: Column) -> None:
        """Add non-negative values."""
        places = np.ascontiguousarray(values, np.float32).view(np.uint32) >> np.uint32(self._SHIFT)
        self.counts += np.bincount(places, minlength=len(self.counts))

    def merge(self, other: Sizes) -> None:
        """Add another's values."""
        self.counts += other.counts

    def quantile(self, share: float) -> float:
        """The value below which this share lies (the middle of its bin); NaN for no values."""
        total = int(self.counts.sum())
        if total == 0:
            return float("nan")
        place = int(np.searchsorted(np.cumsum(self.counts), share * total, side="left"))
        edges = (np.array([place, place + 1], np.uint32) << np.uint32(self._SHIFT)).view(np.float32)
        return float(edges.astype(np.float64).mean())


def power_bin(values: Column, bins: int) -> Column:
    """Bin 0 holds 0, bin b ≥ 1 holds [2^(b-1), 2^b): lengths and positions at a doubling resolution."""
    return np.minimum(np.frexp(np.maximum(values, 0).astype(np.float64))[1], bins - 1)


def resampled(sums: Column) -> Column:
    """[RESAMPLES, ...] sums over draws of the units of [units, ...] that have any; the same draws every time."""
    filled = sums[np.flatnonzero(sums.reshape(len(sums), -1).any(1))]
    return np.tensordot(_draws(len(filled)), filled, 1) if len(filled) else np.zeros((RESAMPLES, *sums.shape[1:]))


def _bootstrap(
    statistic: Callable[[Column, Column], Column | float], sums: Column, counts: Column, level: float
) -> Estimate:
    value = float(statistic(sums.sum(0), counts.sum(0)))
    filled = np.flatnonzero(counts.sum(1))
    if len(filled) < 2:
        return Estimate(value, float("-inf"), float("inf"))
    draws = _draws(len(filled))
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = np.asarray(statistic(draws @ sums[filled], draws @ counts[filled]))
    if np.isnan(resampled).all():
        return Estimate(value, float("-inf"), float("inf"))
    low, high = np.nanquantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))


@lru_cache(maxsize=FOLDS)
def _draws(units: int) -> Column:
    """[RESAMPLES, units] how often each unit is drawn: the same draws every time, so that intervals agree."""
    return np.random.default_rng(0).multinomial(units, np.full(units, 1 / units), RESAMPLES).astype(np.float64)


def _ratio(sums: Column, counts: Column) -> Column:
    return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=counts > 0)

"""Sums per step, environment or length in bounded memory; kept per fold of prompts, so every mean has an interval."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from holdfast.audit.measure.adding import add_up, hash_text
from holdfast.audit.measure.binned import Binned
from holdfast.audit.measure.estimate import Estimate
from holdfast.audit.measure.tokens import FOLDS
from holdfast.audit.read.columns import Column

MOST_KEYS = 512
MOST_NAMES = 512
OTHERS = "(all others)"
_LOWEST, _HIGHEST = np.float32(1e-9), np.float32(100)
_SHIFT = 18  # a float32 keeps five bits of its mantissa: 3 %


class Table:
    """Sums of named sequence quantities per key and fold.

    A mean is a ratio of two columns: of `k3` to `tokens`, of `accepted` to `judged`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.sums: dict[Hashable, Column] = {}

    def add(self, keys: Sequence[Hashable], fold: Column, columns: Mapping[str, Column]) -> None:
        """Add N sequences: their keys, their folds [N], and [N] of each quantity."""
        known = {key: slot for slot, key in enumerate(dict.fromkeys(keys))}
        place = np.array([known[key] for key in keys], np.int64) * FOLDS + fold
        size = len(known) * FOLDS
        sums = np.stack([np.bincount(place, columns[name], size).reshape(-1, FOLDS) for name in self.names], -1)
        for key, slot in known.items():
            self.sums[key] = self.sums[key] + sums[slot] if key in self.sums else sums[slot]

    def total(self, name: str, key: Hashable | None = None) -> float:
        """The sum of a quantity at one key, or everywhere."""
        column = self.names.index(name)
        parts = self.sums.values() if key is None else [self.sums[key]]
        return float(sum(part[:, column].sum() for part in parts))

    def mean(self, value: str, per: str, key: Hashable | None = None) -> Estimate | None:
        """Ratio of two sums at one key, or over all; None where nothing was counted."""
        parts = [self.sums[key]] if key is not None else list(self.sums.values())
        if not parts:
            return None
        both = np.sum(parts, 0)
        single = Binned(1)
        single.sums, single.counts = (both[:, [self.names.index(name)]] for name in (value, per))
        return single.estimate() if single.counts.sum() else None

    def merge(self, other: Table) -> None:
        """Add another's sums."""
        add_up(self.sums, other.sums)

    def rename(self, into: Mapping[Hashable, Hashable]) -> None:
        """Give keys new names; those that get the same one are added up."""
        old, self.sums = self.sums, {}
        for key, sums in old.items():
            name = into.get(key, key)
            self.sums[name] = self.sums[name] + sums if name in self.sums else sums


class StepTable(Table):
    """A table by training step: beyond MOST_KEYS steps, neighbours share one row."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.width = 1
        """Steps per row; a row's key is its first step."""

    def add_steps(self, steps: Column, fold: Column, columns: Mapping[str, Column]) -> None:
        """Add N sequences of these steps; negative ones are not recorded and left out."""
        known = steps >= 0
        keys = (steps[known] // self.width * self.width).tolist()
        self.add(keys, fold[known], {name: columns[name][known] for name in self.names})
        while len(self.sums) > MOST_KEYS:
            self._widen(2 * self.width)

    def merge(self, other: Table) -> None:
        """Add another's sums: rows are then as wide as all steps together need, in whatever order they came."""
        assert isinstance(other, StepTable)
        width = max(self.width, other.width)
        for table in (self, other):
            table._widen(width)
        super().merge(other)
        while len(self.sums) > MOST_KEYS:
            self._widen(2 * self.width)

    def _widen(self, width: int) -> None:
        if width > self.width:
            self.width = width
            self.rename({key: int(key) // width * width for key in self.sums})  # pyright: ignore[reportArgumentType]


class NamedTable(Table):
    """A table by name in bounded memory: beyond MOST_NAMES those whose hashes are largest are summed as OTHERS."""

    def add(self, keys: Sequence[Hashable], fold: Column, columns: Mapping[str, Column]) -> None:
        """Add N sequences: their names, their folds [N], and [N] of each quantity."""
        super().add(keys, fold, columns)
        self._bound()

    def merge(self, other: Table) -> None:
        """Add another's sums."""
        super().merge(other)
        self._bound()

    def _bound(self) -> None:
        if len(self.sums) > MOST_NAMES + 1:
            order = sorted((key for key in self.sums if key != OTHERS), key=lambda key: (hash_text(str(key)), str(key)))
            self.rename(dict.fromkeys(order[MOST_NAMES:], OTHERS))

    def largest(self, most: int, by: str) -> Table:
        """The `most` names with the largest sums of a quantity; the rest as OTHERS."""
        names = sorted((key for key in self.sums if key != OTHERS), key=lambda key: (-self.total(by, key), str(key)))
        shown = Table(self.names)
        shown.sums = dict(self.sums)
        shown.rename(dict.fromkeys(names[most:], OTHERS))
        return shown


class Quantiles:
    """A histogram of positive numbers at 3 % resolution per fold, for quantiles with intervals."""

    def __init__(self) -> None:
        self._first, last = (int(v.view(np.uint32) >> np.uint32(_SHIFT)) for v in (_LOWEST, _HIGHEST))
        self.bins = last - self._first + 1
        self.counts = np.zeros((FOLDS, self.bins), np.int64)
        self.largest = 0.0

    def add(self, values: Column, fold: Column) -> None:
        """Add non-negative values with the fold of each; values beyond 1e-9 and 100 count as these."""
        if len(values) == 0:
            return
        self.largest = max(self.largest, float(values.max()))
        inside = np.clip(values, _LOWEST, _HIGHEST).astype(np.float32, copy=False)
        place = (inside.view(np.uint32) >> np.uint32(_SHIFT)).astype(np.int64) - self._first + fold * self.bins
        self.counts += np.bincount(place, minlength=FOLDS * self.bins).reshape(FOLDS, self.bins)

    def merge(self, other: Quantiles) -> None:
        """Add another's values."""
        self.counts += other.counts
        self.largest = max(self.largest, other.largest)

    @property
    def middles(self) -> Column:
        """[bins] the middle of each bin."""
        edges = (np.arange(self._first, self._first + self.bins + 1, dtype=np.uint32) << np.uint32(_SHIFT)).view(
            np.float32
        )
        return (edges[1:].astype(np.float64) + edges[:-1]) / 2

    def quantile(self, share: float) -> Estimate | None:
        """The value below which this share lies, with its bootstrap interval over prompts; None without values."""
        place = Binned(self.bins)
        place.sums, place.counts = self.counts.astype(np.float64), np.ones_like(self.counts, np.float64)

        def value(means: Column) -> Column | np.float64:
            sums = np.cumsum(means, -1)
            found = (sums < share * sums[..., -1:]).sum(-1)
            return self.middles[np.minimum(found, self.bins - 1)]

        if not self.counts.any():
            return None
        empty = self.counts.sum(1) == 0
        place.counts[empty] = 0
        return place.estimate(value)

    def above(self) -> tuple[Column, Column]:
        """(value, share of values above it) at every bin that holds any."""
        total = self.counts.sum(0)
        share = 1 - np.cumsum(total) / max(1, total.sum())
        filled = np.flatnonzero(total)
        return self.middles[filled], share[filled]

"""Per-sequence numbers by length, in bounded memory: the shortest quarter of responses against the longest."""

from __future__ import annotations

import numpy as np

from holdfast.audit.measure.binned import Binned
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

BINS = 4 * 24
"""Four bins to a doubling of the length."""


def length_bin(lengths: Column) -> Column:
    """[N] bin of a length in measured tokens; -1 for none."""
    bins = np.floor(4 * np.log2(np.maximum(lengths, 1))).astype(np.int64)
    return np.where(lengths > 0, np.minimum(bins, BINS - 1), -1)


def length_of(bin_: int) -> int:
    """The shortest length in a bin."""
    return int(np.ceil(2 ** (bin_ / 4)))


class ByLength:
    """Means of one number per sequence by length."""

    def __init__(self) -> None:
        self.binned = Binned(BINS)

    def add(self, view: View, values: Column) -> None:
        """Add [N] values, one per sequence; sequences without measured tokens are left out."""
        bins = length_bin(view.sequence_measured)
        rows = np.flatnonzero(bins >= 0)
        self.binned.add(view.fold[rows], bins[rows], values[rows])

    def quarters(self) -> tuple[Column, Column]:
        """Bins that hold the shortest and the longest quarter of sequences, or a little more."""
        counts = np.cumsum(self.binned.count())
        first = np.arange(BINS) <= np.searchsorted(counts, 0.25 * counts[-1])
        last = np.arange(BINS) >= np.searchsorted(counts, 0.75 * counts[-1], side="right")
        return np.flatnonzero(first), np.flatnonzero(last)

    def means(self, bins: Column) -> Column:
        """[FOLDS, 2]: sums and counts of these bins by fold."""
        return np.stack([self.binned.sums[:, bins].sum(1), self.binned.counts[:, bins].sum(1)], -1)

"""The worst tokens a check has seen, to show where."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np

from holdfast.audit.judge.finding import Where
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

MOST = 10
FIRST = 8
"""Places of one token id that are kept."""
MOST_IDS = 1 << 20
"""Token ids beyond are counted as the last one."""
NONE = np.iinfo(np.int64).max


@dataclass
class Places:
    """At most MOST tokens: those of largest badness, the first ones among equals."""

    _kept: list[tuple[float, int, int]] = field(default_factory=list)

    def add(self, view: View, tokens: Column, badness: Column | None = None) -> None:
        """Offer tokens (indices into the chunk), each with its badness."""
        weights = np.zeros(len(tokens)) if badness is None else np.asarray(badness, np.float64)
        for i in np.argsort(-weights, kind="stable")[:MOST]:
            token = tokens[i]
            sequence = int(np.searchsorted(view.chunk.offsets, token, side="right")) - 1
            entry = (float(weights[i]), -view.first_sequence - sequence, -int(token - view.chunk.offsets[sequence]))
            (heapq.heappush if len(self._kept) < MOST else heapq.heappushpop)(self._kept, entry)

    def merge(self, other: Places) -> None:
        """Add another's tokens."""
        self._kept = heapq.nlargest(MOST, self._kept + other._kept)
        heapq.heapify(self._kept)

    def where(self) -> Where:
        """Sequences and positions, worst first."""
        places = tuple((-sequence, -position) for _, sequence, position in sorted(self._kept, reverse=True))
        return Where(sequences=tuple(dict.fromkeys(s for s, _ in places)), positions=places)


class FirstById:
    """Where tokens of each id stand first in the log: at most FIRST places of each."""

    def __init__(self) -> None:
        self.numbers = np.zeros((0, FIRST), np.int64)
        """[ids, FIRST] sequences of the first places, NONE beyond the last; and the tokens' positions in them."""
        self.positions = np.zeros((0, FIRST), np.int64)

    def add(self, ids: Column, numbers: Column, positions: Column) -> None:
        """Offer tokens in the order of the log: their ids, sequences and positions; no sequence comes up again."""
        if not len(ids):
            return
        ids = np.clip(ids, 0, MOST_IDS - 1).astype(np.int64)
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        rank = np.arange(len(ids)) - np.searchsorted(ids, ids)
        order, ids, rank = order[rank < FIRST], ids[rank < FIRST], rank[rank < FIRST]
        known, row = np.unique(ids, return_inverse=True)
        table = np.full((2, len(known), FIRST), NONE)
        table[0, row, rank], table[1, row, rank] = numbers[order], positions[order]
        self._offer(known, table)

    def merge(self, other: FirstById) -> None:
        """Offer another's places."""
        self._offer(np.arange(len(other.numbers)), np.stack([other.numbers, other.positions]))

    def where(self, token: int) -> Where:
        """Sequences and positions of an id."""
        if not 0 <= token < len(self.numbers):
            return Where()
        both = zip(self.numbers[token].tolist(), self.positions[token].tolist(), strict=True)
        places = tuple((number, position) for number, position in both if number != NONE)
        return Where(sequences=tuple(dict.fromkeys(number for number, _ in places)), positions=places)

    def _offer(self, ids: Column, table: Column) -> None:
        if not len(ids):
            return
        lacking = int(ids[-1]) + 1 - len(self.numbers)
        if lacking > 0:
            self.numbers, self.positions = (
                np.pad(kept, ((0, lacking), (0, 0)), constant_values=NONE) for kept in (self.numbers, self.positions)
            )
        numbers = np.concatenate([self.numbers[ids], table[0]], 1)
        positions = np.concatenate([self.positions[ids], table[1]], 1)
        order = np.argsort(numbers, 1, kind="stable")[:, :FIRST]
        self.numbers[ids], self.positions[ids] = (np.take_along_axis(v, order, 1) for v in (numbers, positions))

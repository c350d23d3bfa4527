"""Tokens counted by id, and exact zeros the trainer contradicts: all on one id is a forced token, else lost data."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

CONCENTRATION = 0.9
FEWEST = 8
MOST_IDS = 1 << 20


@dataclass
class CountsById:
    """How often each token id came up; ids of MOST_IDS and more are not told apart."""

    counts: Column = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, ids: Column) -> None:
        """Count these tokens."""
        if not len(ids):
            return
        new = np.bincount(np.clip(ids, 0, MOST_IDS - 1))
        if len(new) > len(self.counts):
            self.counts = np.pad(self.counts, (0, len(new) - len(self.counts)))
        self.counts[: len(new)] += new


@dataclass
class ExactZeros:
    """The view's blank tokens so far, by id."""

    by_id: CountsById = field(default_factory=CountsById)
    count: int = 0

    def update(self, view: View) -> None:
        """Count one chunk's."""
        self.count += len(view.blank)
        self.by_id.add(view.tokens("response_ids")[view.blank])

    def one_token(self) -> tuple[int, int] | None:
        """(id, count) where nearly all zeros fall on one token id."""
        if self.count < FEWEST:
            return None
        token = int(self.by_id.counts.argmax())
        count = int(self.by_id.counts[token])
        return (token, count) if count >= CONCENTRATION * self.count else None

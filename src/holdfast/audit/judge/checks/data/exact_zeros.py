"""Tokens counted by id, and exact zeros the trainer contradicts: all on one id is a forced token, else lost data."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from holdfast.audit.judge.checks.places import MOST_IDS
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

CONCENTRATION = 0.9
FEWEST = 8


@dataclass
class CountsById:
    """How often each token id came up; ids of MOST_IDS and more are not told apart."""

    counts: Column = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, ids: Column) -> None:
        """Count these tokens."""
        self._add(np.bincount(np.clip(ids, 0, MOST_IDS - 1)))

    def merge(self, other: CountsById) -> None:
        """Add another's counts."""
        self._add(other.counts)

    def _add(self, new: Column) -> None:
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


GROUP_BITS = 12
"""Token ids are told apart by a hash of so many bits: the commonest ids of a text mostly have a group each."""
LEAST = 0.1
"""Share of zeros that every group of ids must have for zeros to fall on all alike."""
ORDINARY = 0.2
"""Nats: mean surprise of the other tokens from which on their values are ordinary ones."""
NEARLY = 0.01
"""Nats of surprise below which a token was nearly certain."""
ENOUGH, FEWEST_GROUPS = 50, 8
"""Tokens of a group below which it is left out, and groups that are needed."""


@dataclass
class ZerosByToken:
    """The engine's exact zeros by group of token ids, where no trainer's values lie beside them.

    A policy's certainty depends on the token: there are ids of which it is hardly ever certain. Zeros that were filled
    in fall on all alike.
    """

    counts: Column = field(default_factory=lambda: np.zeros((1 << GROUP_BITS, 2)))
    surprise: float = 0.0
    near: int = 0
    """Tokens of which the engine was nearly certain: a truncated support (top-p) makes zeros and leaves none."""

    def update(self, view: View) -> None:
        """Count one chunk's own tokens and zeros."""
        engine = view.tokens("rollout_logprobs")
        own = view.own & np.isfinite(engine) & view.given("rollout_logprobs")
        ids = view.tokens("response_ids").astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        group = (ids >> np.uint64(64 - GROUP_BITS)).astype(np.int64)
        for column, where in enumerate((own, own & (engine == 0))):
            self.counts[:, column] += np.bincount(group[where], minlength=1 << GROUP_BITS)
        self.surprise -= float(engine[own].sum())
        self.near += int((own & (engine < 0) & (engine > -NEARLY)).sum())

    @property
    def tokens(self) -> int:
        """Tokens counted."""
        return int(self.counts[:, 0].sum())

    @property
    def zeros(self) -> int:
        """Zeros among them."""
        return int(self.counts[:, 1].sum())

    def filled(self) -> float | None:
        """The share of zeros that every group has at least, where that says they were filled in; None elsewhere."""
        tokens, zeros = self.counts[self.counts[:, 0] >= ENOUGH].T
        others = self.tokens - self.zeros
        if len(tokens) < FEWEST_GROUPS or self.surprise < ORDINARY * others or self.near < 0.1 * others:
            return None
        rate = zeros / tokens
        least = float((rate + 2 * np.sqrt(rate * (1 - rate) / tokens)).min())
        return least if least >= LEAST else None

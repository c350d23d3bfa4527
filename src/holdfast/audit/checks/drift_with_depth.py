"""Drift that grows along the response: an engine whose numerics worsen with length, or weights changed on the way."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.binned import Binned
from holdfast.audit.checks.check import Facts
from holdfast.audit.columns import Column
from holdfast.audit.finding import Finding
from holdfast.audit.view import View

BINS = 24
GROWTH = 1.5
"""Deep tokens at this multiple of the shallow ones' drift are worth a word; at three times this, a warning."""


class DriftWithDepth:
    """Compares the mean |log-ratio| of the deepest quarter of positions with that of the first."""

    name = "drift_with_depth"
    asks = "Is the drift at the end of a response as small as at its start?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs"})

    def __init__(self) -> None:
        self.by_depth = Binned(BINS)

    def update(self, view: View) -> None:
        """Sum |log-ratio| by the position's power of two."""
        self.by_depth.add_tokens(view, view.depth, view.size)

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where the growth is larger than GROWTH with 99.9 % confidence."""
        filled = np.flatnonzero(self.by_depth.count() >= 1000)
        if len(filled) < 4:
            return
        early, late = filled[: len(filled) // 2], filled[-2:]

        def growth(means: Column) -> Column:
            return np.nanmean(means[..., late], -1) / np.nanmean(means[..., early], -1)

        grown = self.by_depth.estimate(growth, level=0.998)
        if not grown.low > GROWTH:
            return
        yield Finding(
            name=self.name,
            kind="drift",
            severity="critical" if grown.low > 3 * GROWTH else "warning",
            headline=f"tokens beyond position {1 << (int(late[0]) - 1):,} drift {grown.value:.1f} times as much as "
            "early ones",
            meaning="The end of a long chain is sampled from another policy than the one trained; a bound on the "
            "error grows with it, and long responses pay for it.",
            fix="Look for what changes with length: KV-cache precision, rotary scaling, chunked prefill, prefix "
            "caching, weights exchanged in mid-response. Until then mask by sequence, with a length-neutral rule.",
            evidence={"growth": grown},
        )

"""A handful of tokens makes nearly all of the measured divergence."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.binned import Sizes
from holdfast.audit.checks.check import Facts
from holdfast.audit.checks.places import Places
from holdfast.audit.finding import Finding
from holdfast.audit.view import View

TOP = 0.001
SHARE = 0.9
FEWEST_TOKENS = 10_000
NOTABLE = 0.01
"""k3 below this (a ratio within 15 %) is summed and not sorted."""


class FewTokensDominate:
    """Share of Σ k3 on the 0.1 % of tokens with the largest k3.

    Drift has heavy tails: 0.2 to 0.7 is usual, the more so with a mixture of experts. From FEWEST_TOKENS tokens on.
    """

    name = "few_tokens_dominate"
    asks = "Is the divergence spread over more than a handful of tokens?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs"})

    def __init__(self) -> None:
        self.total = 0.0
        self.notable = Sizes()
        self.places = Places()
        self.largest = 0.0

    def update(self, view: View) -> None:
        """Sum k3, and sort the large ones into a histogram."""
        self.total += float(view.k3.sum())
        notable = np.flatnonzero(view.k3 > NOTABLE)
        if len(notable):
            self.notable.add(view.k3[notable])
            self.largest = max(self.largest, float(view.size[notable].max()))
            self.places.add(view, notable, view.k3[notable])

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where the top tokens carry more than SHARE."""
        top = round(TOP * facts.measured_tokens)
        if facts.measured_tokens < FEWEST_TOKENS or not self.total > 0:
            return
        share = min(1.0, self.notable.sum_of_largest(top) / self.total)
        mean = self.total / facts.measured_tokens
        if share < SHARE or mean < 1e-4:
            return
        yield Finding(
            name=self.name,
            kind="drift",
            severity="warning",
            headline=f"0.1 % of the tokens ({top:,}) carry {share:.1%} of the divergence",
            meaning="Means over tokens say nothing about the other 99.9 %, and a mean-based threshold rejects "
            "sequences for one token. Such tokens come from an error in the log or from a context in which the "
            "engine really is off.",
            fix="Look at these tokens first (positions below). Where they are real, mask by the largest token of a "
            "sequence, or truncate token weights; a mean over the sequence dilutes them.",
            evidence={
                "share of k3 on 0.1 % of tokens": share,
                "mean k3": mean,
                "mean k3 without them": mean * (1 - share),
                "largest |log-ratio|": self.largest,
            },
            where=self.places.where(),
        )

"""A handful of tokens makes nearly all of the measured divergence."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.places import Places
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.view import View

EXTREME = 3.0
"""Nats: the ratio is beyond 20 or below a twentieth."""
SHARE = 0.75
FEWEST, MOST = 5, 0.002
"""Below FEWEST tokens it is chance; above this share of all tokens they are no longer few."""


class FewTokensDominate:
    """Share of Σ k3 on tokens with |log-ratio| > EXTREME.

    Drift has heavy tails: in healthy runs of a mixture of experts the 0.1 % of tokens with the largest k3 carry 0.3 to
    0.95 of it, so that share tells nothing. Ratios beyond 20 carry up to 0.6.
    """

    name = "few_tokens_dominate"
    asks = "Is the divergence spread over more than a handful of tokens?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs"})

    def __init__(self) -> None:
        self.total = 0.0
        self.extreme = 0.0
        self.count = 0
        self.places = Places()

    def update(self, view: View) -> None:
        """Sum k3 over all tokens and over the extreme ones."""
        self.total += float(view.k3.sum())
        extreme = np.flatnonzero(view.size > EXTREME)
        if len(extreme):
            self.extreme += float(view.k3[extreme].sum())
            self.count += len(extreme)
            self.places.add(view, extreme, view.size[extreme])

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where a few extreme tokens carry more than SHARE."""
        if not FEWEST <= self.count <= MOST * facts.measured_tokens or self.extreme < SHARE * self.total:
            return
        share, mean = self.extreme / self.total, self.total / facts.measured_tokens
        of_tokens = self.count / facts.measured_tokens
        yield Finding(
            name=self.name,
            kind="drift",
            severity="warning",
            headline=f"{self.count:,} tokens ({of_tokens:.2g} of all) carry {share:.1%} of the divergence: there "
            "the trainer's probability is off by a factor beyond 20",
            meaning="Means over tokens say nothing about all the others, and a mean-based threshold rejects "
            "sequences for one token. Such tokens come from an error in the log or from a context in which the "
            "engine really is off.",
            fix="Look at these tokens first (positions below). Where they are real, mask by the largest token of a "
            "sequence, or truncate token weights; a mean over the sequence dilutes them.",
            evidence={
                "share of k3": share,
                "share of tokens": of_tokens,
                "mean k3": mean,
                "mean k3 without them": mean * (1 - share),
            },
            settings=settings("sequence_mask"),
            where=self.places.where(),
        )

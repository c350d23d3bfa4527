"""Sequence weights Π ratio that shrink or blow up with length: a correction that turns long responses off."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.lengths import ByLength, length_of
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

MASK_CAP, TRUNCATE_CAP = 3.0, 2.0
"""TRL masks products above 3 and verl truncates at 2, unless set otherwise."""
LITTLE = 0.5
"""Long responses whose mean weight is below this share of what it should be, 1, hardly train."""
FEWEST_SEQUENCES = 32


class VanishingWeights:
    """Mean weight and effective sample size of w = Π_t ratio_t, of the longest quarter of responses and the shortest.

    E[w] = 1 under the engine, at any length. Masked: w·1[w ≤ 3]. Truncated: min(w, 2). Effective sample size:
    (Σw)² / (N Σw²) of the truncated weights.
    """

    name = "vanishing_weights"
    asks = "Would sequence-level importance weights still train long responses?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs"})

    def __init__(self) -> None:
        self.masked, self.truncated, self.squared = ByLength(), ByLength(), ByLength()

    def update(self, view: View) -> None:
        """Take each sequence's weight."""
        weight = np.exp(np.clip(view.sum(view.log_ratio), -50, 50))
        truncated = np.minimum(weight, TRUNCATE_CAP)
        self.masked.add(view, np.where(weight <= MASK_CAP, weight, 0))
        self.truncated.add(view, truncated)
        self.squared.add(view, truncated**2)

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where the masked weight of long responses is below LITTLE beyond chance."""
        if self.masked.binned.count().sum() < FEWEST_SEQUENCES:
            return
        short, long = self.masked.quarters()
        if not _estimate(self.masked, long, 0.998).high < LITTLE:
            return
        masked, first = _estimate(self.masked, long, 0.95), _mean(self.masked, short)
        size = _mean(self.truncated, long) ** 2 / max(1e-300, _mean(self.squared, long))
        yield Finding(
            name=self.name,
            kind="drift",
            severity="warning" if masked.value < 0.2 else "info",
            headline=f"a weight per sequence would give responses from {length_of(int(long[0])):,} tokens on a mean "
            f"weight of {masked.value:.2f} instead of 1 (the shortest quarter: {first:.2f})",
            meaning="Small differences add up over a response: the product is near 0 for most long ones and beyond the "
            "cap for the rest. With TRL's default (the product, masked at 3) or verl's rollout_is=sequence, "
            "long responses hardly train.",
            fix="Correct token by token (truncated at 2), or mask whole sequences by a mean over tokens. If the run "
            "has no weight per sequence, nothing needs to change.",
            evidence={
                "masked weight, longest quarter": masked,
                "masked weight, shortest quarter": first,
                "truncated weight, longest quarter": _mean(self.truncated, long),
                "effective sample size, longest quarter": size,
            },
            settings=settings("truncated_token_weights"),
        )


def _estimate(numbers: ByLength, bins: Column, level: float):
    return numbers.binned.estimate_totals(
        lambda sums, counts: sums[..., bins].sum(-1) / counts[..., bins].sum(-1), level
    )


def _mean(numbers: ByLength, bins: Column) -> float:
    return float(numbers.binned.sums[:, bins].sum() / max(1.0, numbers.binned.counts[:, bins].sum()))

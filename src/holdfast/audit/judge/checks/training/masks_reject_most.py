"""A mask that rejects most of what was sampled, or all of a step: compute thrown away, or a step on nothing."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.finding import Finding, Where
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.binned import Binned
from holdfast.audit.measure.view import View

REJECTED = 0.3
"""Masks are meant to keep at least 70 %."""
EMPTY = 0.99
FEWEST_TOKENS = 200


class MasksRejectMost:
    """Share of the policy's own tokens that the recorded mask keeps out of the gradient, in all and by step."""

    name = "masks_reject_most"
    asks = "Does most of what was sampled get into the gradient?"
    needs = frozenset({"trust_mask"})

    def __init__(self) -> None:
        self.kept = Binned(1)
        self.steps: dict[int, np.ndarray] = {}

    def update(self, view: View) -> None:
        """Count own tokens and kept ones, by step."""
        known = view.own & view.given("trust_mask")
        kept = view.tokens("trust_mask") & known
        self.kept.add_sequences(view, 0, kept, known)
        tokens, kept = view.sum(known), view.sum(kept)
        for step in np.unique(view.step):
            rows = view.step == step
            self.steps.setdefault(int(step), np.zeros(2))
            self.steps[int(step)] += tokens[rows].sum(), kept[rows].sum()

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """One finding for too large a share in all, or for steps of which next to nothing is left."""
        kept = self.kept.estimate()
        shares = {step: kept / tokens for step, (tokens, kept) in self.steps.items() if tokens >= FEWEST_TOKENS}
        empty = tuple(sorted(step for step, share in shares.items() if share < 1 - EMPTY))
        if not (empty or self.kept.estimate(level=0.998).high < 1 - REJECTED):
            return
        rejected = 1 - kept.value
        worst = tuple(sorted(shares, key=lambda step: shares[step])[:10])
        whole = f"; {len(empty)} of {len(shares)} steps lose all but 1 % of theirs" if empty else ""
        yield Finding(
            name=self.name,
            kind="training",
            severity="critical" if empty or rejected > 0.6 else "warning",
            headline=f"the mask rejects {rejected:.0%} of the tokens{whole}",
            meaning="The run pays for rollouts that it does not learn from. What is left is no fair sample: it is "
            "short, certain and close to the old policy. A step of which nothing is left divides by zero or moves by "
            "momentum alone.",
            fix="First look at the drift itself: a threshold that rejects this much is too tight for this engine, or "
            "the drift is a fault and the mask hides it. Then set a threshold from this run's own numbers, above what "
            "equal weights show.",
            evidence={
                "rejected": rejected,
                "kept": kept,
                "steps left empty": len(empty),
                **({"worst step": worst[0], "kept there": shares[worst[0]]} if worst and worst[0] >= 0 else {}),
            },
            where=Where(steps=tuple(step for step in (empty or worst)[:10] if step >= 0)),
            settings=settings("sequence_mask"),
        )

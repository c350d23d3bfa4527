"""One policy is renormalised on the tokens that top-p, top-k or min-p left, and the other is not."""

from __future__ import annotations

import math
from collections.abc import Iterable

from holdfast.audit.judge.checks.calibration import (
    BACKWARD,
    FEWEST_TOKENS,
    FORWARD,
    Calibration,
    deficit,
    far_deficit,
    imbalance,
    truncated_side,
)
from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.adding import Span
from holdfast.audit.measure.binned import Sizes
from holdfast.audit.measure.view import View

MOST_BLANK = 0.002
"""Share of exact zeros (`zero_filled`) above which the loss of weight is theirs."""
SMALLEST = 0.002
"""Mean weight missing per token from which it matters."""


class SupportMismatch:
    """Looks for weights that err to one side by little: r = log(kept mass) at every truncated context.

    With the same support on both sides lost and gained weights balance (`Calibration`). An engine that renormalises
    after truncation against a trainer that does not loses the mass outside; the other way round it is gained.
    """

    name = "support_mismatch"
    asks = "Are both log-probabilities over the same set of tokens?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs"})

    def __init__(self) -> None:
        self.calibration = Calibration()
        self.blank = 0
        self.missing = Sizes()
        self.sampling = {name: Span() for name in ("temperature", "top_p", "top_k", "min_p")}

    def update(self, view: View) -> None:
        """Add weights, and the size of the ratios that matter."""
        self.blank += len(view.blank)
        self.calibration.update(view)
        self.missing.add(view.size[view.size > 0.01])
        for name, seen in self.sampling.items():
            if view.has(name):
                seen.add(view.numbers(name)[view.chunk.present[name]])

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where weights are out of balance by small ratios."""
        c = self.calibration
        if c.tokens < FEWEST_TOKENS or self.blank > MOST_BLANK * facts.measured_tokens:
            return
        missing, balance, kept = c.estimate(deficit, 0.95), c.estimate(imbalance), truncated_side(c)
        sure = balance.low > FORWARD / 2 if kept == "engine" else balance.high < BACKWARD
        if not kept or not sure or abs(missing.value) < SMALLEST:
            return
        if abs(c.value(far_deficit)) > 0.5 * abs(missing.value):
            return
        full = "trainer" if kept == "engine" else "engine"
        least = math.exp(-self.missing.quantile(0.99))
        recorded = {name: seen.low for name, seen in self.sampling.items() if math.isfinite(seen.low)}
        yield Finding(
            name=self.name,
            kind="data",
            severity="critical" if abs(missing.value) > 0.01 else "warning",
            headline=f"the {full} spreads its probability over the whole vocabulary and the {kept} over a part of "
            f"it: sampled tokens get {abs(missing.value):.1%} less on average, down to a factor {least:.2f}",
            meaning="Top-p, top-k or min-p removed tokens on one side only. Ratios are then off by the kept mass at "
            "every uncertain token, always to the same side: drift is read where there is none, and chi-square is "
            "infinite.",
            fix=f"Renormalise both policies on the same kept set (log the kept set's mass, or let the {kept} "
            "compute over all tokens), or sample with top_p = 1, top_k off and min_p = 0 in training.",
            evidence={
                "imbalance of weights": balance,
                "mean weight missing": missing,
                "smallest kept mass (1 % of the affected tokens)": least,
                **{f"recorded {name}": value for name, value in recorded.items()},
            },
            settings=settings("sampling_support", temperature=recorded.get("temperature", 1.0)),
            invalidates=abs(missing.value) > 0.01,
        )

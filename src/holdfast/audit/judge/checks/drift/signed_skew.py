"""Importance weights that err to one side where the advantage is positive, and to the other where it is negative."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.adding import Span
from holdfast.audit.measure.binned import Binned
from holdfast.audit.measure.estimate import Estimate
from holdfast.audit.measure.extremes import SIGNS
from holdfast.audit.measure.tokens import UNKNOWN
from holdfast.audit.measure.view import View

LIMIT, STALE_LIMIT = 0.003, 0.03
"""|E[-(w - 1) A]| over E|A|, for A of one sign: the limit where all rollouts are equally fresh by their weight
versions, and where they are not or do not say."""
FEWEST = 1000
"""Tokens of a sign."""
LEVEL = 0.998


class SignedSkew:
    """E[-(w - 1) A | sign of A] in units of the mean |A| of that sign, w = p(trainer) / p(engine) of each token.

    Over all tokens E[w] = 1, so the mean of w - 1 is 0 whatever the drift, and no KL shows more than its size. Where
    w - 1 goes with the sign of the advantage, the tokens that the engine got wrong are those that reward or punish:
    the gradient is biased by as much. It is reported to move hundreds of steps before any KL does (VeXact, arXiv
    2605.14220). An update between sampling and scoring moves it too, by what was learnt: hence STALE_LIMIT.
    """

    name = "signed_skew"
    asks = "Do importance weights leave good and bad answers alike?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs", "advantages"})

    def __init__(self) -> None:
        self.sums = Binned(6)
        self.freshness = Span()

    def update(self, view: View) -> None:
        """Sum pulls and advantages of both signs."""
        self.sums.add_quantities(view, view.pulls)
        self.freshness.add(view.freshness[view.freshness != UNKNOWN])

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where one of the two is beyond its limit for sure."""
        found = {sign: e for sign in SIGNS if (e := self._skew(sign)) is not None}
        limit = LIMIT if self.freshness.low == self.freshness.high else STALE_LIMIT
        sure = {sign: e for sign, e in found.items() if e.low > limit or e.high < -limit}
        if not sure:
            return
        sign = max(sure, key=lambda name: abs(sure[name].value))
        worst = sure[sign]
        toward = "lower" if (worst.value > 0) == (sign == "positive") else "higher"
        yield Finding(
            name=self.name,
            kind="drift",
            severity="warning",
            headline=f"where the advantage is {sign}, the trainer gives the sampled tokens a {toward} probability than "
            f"the engine did: weights pull the gradient by {abs(worst.value):.1%} of the mean advantage, to one side",
            meaning="Weights average to 1 over all tokens, but not over those that are reinforced or punished: what "
            "engine and trainer disagree on decides the reward. The gradient then corrects the engine's errors instead "
            "of the policy's, and this is reported to grow hundreds of steps before any KL does.",
            fix="Find what the engine does otherwise (precision, kernels, sampling settings, a stale replica): at "
            "equal weights nothing else makes this. If rollouts are updates old, train on fresher ones. Until then "
            "truncate weights per token and drop the sequences that are far off.",
            evidence={f"skew over mean |A|, A {name}": e for name, e in found.items()},
            settings=settings("truncated_token_weights"),
        )

    def _skew(self, sign: str) -> Estimate | None:
        """[-(w - 1) A] over |A|, for A of one sign; None for too few tokens."""
        at, size = 2 * SIGNS.index(sign), 4 + SIGNS.index(sign)
        if self.sums.sums[:, at + 1].sum() < FEWEST:
            return None
        return self.sums.estimate_totals(lambda sums, _: sums[..., at] / np.maximum(sums[..., size], 1e-12), LEVEL)

"""Entropy that falls towards nothing: the policy stops exploring, and what moves it is a few tokens' covariance."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.checks.check import Facts
from holdfast.audit.columns import Column
from holdfast.audit.contrast import trend_chance
from holdfast.audit.finding import Estimate, Finding, Where
from holdfast.audit.fixes import settings
from holdfast.audit.view import FOLDS, View

FELL_TO = 0.6
"""The last third of the steps has less than this share of the first third's entropy."""
COLLAPSED_TO = 0.25
FEWEST_STEPS = 6
UNLIKELY = 0.005
TOP = 0.002
"""Share of tokens whose part of the covariance is reported: KL-Cov's for its smaller models."""
LOOKED_AT = 4_000_000
"""Tokens of which the largest covariances are sought; the covariance itself is over all."""


class EntropyCollapse:
    """Compares the entropy of the last third of the steps with the first, and measures what drives it.

    Where no entropy is recorded, -log p(engine) at the sampled token stands for it: its mean over samples is the
    engine's entropy. To first order a policy gradient changes the entropy by -η Cov(log p, A) (arXiv 2505.22617).
    """

    name = "entropy_collapse"
    asks = "Does the policy still explore?"
    needs = frozenset({"step", "rollout_logprobs"})

    def __init__(self) -> None:
        self.steps: dict[int, np.ndarray] = {}
        self.moments = np.zeros((FOLDS, 4))
        self.top = np.zeros(2)
        self.looked_at = 0

    def update(self, view: View) -> None:
        """Sum the entropy by step, and the moments of log p and A by fold."""
        engine = view.tokens("rollout_logprobs")
        with np.errstate(invalid="ignore"):
            known = view.own & np.isfinite(engine) & (engine <= 0)
        entropy = -engine
        if view.has("entropy"):
            recorded = view.tokens("entropy")
            entropy = np.where(np.isfinite(recorded) & view.given("entropy"), recorded, entropy)
        sums, counts = view.sum(np.where(known, entropy, 0)), view.sum(known)
        for step in np.unique(view.step[view.step >= 0]):
            rows = view.step == step
            self.steps.setdefault(int(step), np.zeros(2))
            self.steps[int(step)] += sums[rows].sum(), counts[rows].sum()
        if view.has("advantages"):
            self._covary(view, engine, known & view.given("advantages") & np.isfinite(view.tokens("advantages")))

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where the entropy fell steadily to less than FELL_TO."""
        steps = sorted(step for step, (_, count) in self.steps.items() if count > 0)
        if len(steps) < FEWEST_STEPS:
            return
        entropy = np.array([self.steps[step][0] / self.steps[step][1] for step in steps])
        third = len(steps) // 3
        first, last = float(entropy[:third].mean()), float(entropy[-third:].mean())
        if not (last < FELL_TO * first and trend_chance(-entropy) < UNLIKELY):
            return
        covariance = self._covariance()
        yield Finding(
            name=self.name,
            kind="training",
            severity="critical" if last < COLLAPSED_TO * first else "warning",
            headline=f"entropy fell from {first:.3g} to {last:.3g} nats per token between steps {steps[0]} and "
            f"{steps[-1]}",
            meaning="The policy repeats what it is already sure of. Rewards flatten out, the responses of a group "
            "become the same and their advantages vanish; what is lost cannot be learnt back."
            + (
                f" {self.top[0] / self.top[1]:.0%} of the covariance that drives it sits in {TOP:.1%} of the tokens."
                if self.top[1] > 0
                else ""
            ),
            fix="Take the few tokens of largest covariance out of the gradient (Clip-Cov) or hold them back (KL-Cov), "
            "raise the upper clip, or add an entropy bonus that tracks a target. Start again from a checkpoint before "
            "the fall.",
            evidence={
                "entropy, first third": first,
                "entropy, last third": last,
                **({} if covariance is None else {"covariance of log p and A": covariance}),
                **({f"share of the top {TOP:.1%}": float(self.top[0] / self.top[1])} if self.top[1] > 0 else {}),
            },
            where=Where(steps=tuple(steps[-third:])[-10:]),
            settings=settings("covariance_control"),
        )

    def _covary(self, view: View, logprobs: Column, known: Column) -> None:
        """Moments Σlog p, ΣA, Σ(A log p) and counts by fold; sums over the tokens of largest covariance."""
        p, a = np.where(known, logprobs, 0), np.where(known, view.tokens("advantages"), 0)
        tokens = view.sum(known)
        moments = (view.sum(p), view.sum(a), view.sum(p.astype(np.float64) * a), tokens)
        for column, values in enumerate(moments):
            self.moments[:, column] += np.bincount(view.fold, weights=values, minlength=FOLDS)
        count = int(tokens.sum())
        if count * TOP < 1 or self.looked_at > LOOKED_AT:
            return
        self.looked_at += count
        positive = ((p - moments[0].sum() / count) * (a - moments[1].sum() / count))[known]
        most = np.partition(positive, len(positive) - int(count * TOP))[-int(count * TOP) :]
        self.top += float(np.maximum(most, 0).sum()), float(np.maximum(positive, 0).sum())

    def _covariance(self) -> Estimate | None:
        """Cov(log p, A) with its interval over prompts; None without advantages."""
        filled = np.flatnonzero(self.moments[:, 3])
        if len(filled) < 2:
            return None
        draws = np.random.default_rng(0).multinomial(len(filled), np.full(len(filled), 1 / len(filled)), 400)
        low, high = np.quantile(_covariance(draws @ self.moments[filled]), [0.025, 0.975])
        return Estimate(float(_covariance(self.moments.sum(0))), float(low), float(high))


def _covariance(moments: Column) -> Column:
    p, a, product, count = np.moveaxis(moments, -1, 0)
    return np.asarray(product / count - (p / count) * (a / count))

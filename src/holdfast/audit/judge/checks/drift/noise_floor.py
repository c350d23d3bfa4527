"""How far engine and trainer are apart at equal weights: no setting gets drift below it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.adding import add_up
from holdfast.audit.measure.binned import Binned
from holdfast.audit.measure.estimate import Estimate
from holdfast.audit.measure.tokens import UNKNOWN
from holdfast.audit.measure.view import View

MOST_AGES = 64
TOO_HIGH = 0.01
"""Mean k3 at equal weights: dense models are at 2e-4, mixtures of experts at 2e-3; a run at 2e-2 had a bug."""


class NoiseFloor:
    """Mean |log-ratio| and k3 of the sequences sampled with the freshest weights.

    The freshest are those with the largest weight version - step that the run has: with one update per step and any
    training on-policy, weights equal to the trainer's. Sequences whose weights changed on the way are left out. What
    the run measures above the floor is staleness, and only that can be reduced by syncing more often.
    """

    name = "noise_floor"
    asks = "How much drift is there at equal weights?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs", "weight_versions", "step"})

    def __init__(self) -> None:
        self.by_age: dict[int, Binned] = {}
        """The freshest MOST_AGES; all others together in `older`."""
        self.older = Binned(3)

    def update(self, view: View) -> None:
        """Sum |log-ratio| and k3 by the sequence's age."""
        age = view.freshness
        sums = np.column_stack([view.sequence_measured, view.sequence_size, view.sequence_k3])
        for a in np.unique(age).tolist():
            if a != UNKNOWN:
                binned = self.by_age.setdefault(a, Binned(3))
                binned.add_quantities(view, sums * (age == a)[:, None])
        self._bound()

    def merge(self, other: NoiseFloor) -> None:
        """Add another's ages."""
        add_up(self.by_age, other.by_age)
        self.older.merge(other.older)
        self._bound()

    def _bound(self) -> None:
        for age in sorted(self.by_age)[:-MOST_AGES]:
            self.older.merge(self.by_age.pop(age))

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """What the floor is, always; a warning where it is too high."""
        if not self.by_age:
            return
        freshest = self.by_age[max(self.by_age)]
        size, k3 = (_per_token(freshest, k) for k in (1, 2))
        if freshest.sums[:, 0].sum() < 1000:
            return
        total = np.sum([b.sums.sum(0) for b in (self.older, *self.by_age.values())], 0)
        above = 1 - k3.value / max(float(total[2] / total[0]), 1e-30)
        high = k3.low > TOO_HIGH
        stale = f"; staleness adds {above:.0%} of all that is measured" if above > 0.05 and len(self.by_age) > 1 else ""
        yield Finding(
            name=self.name,
            kind="drift",
            severity="warning" if high else "info",
            headline=f"at the freshest weights engine and trainer differ by {size.value:.2g} nats a token "
            f"(k3 {k3.value:.2g}){stale}",
            meaning="This much comes from numerics alone: precision, kernels, batch composition, expert routing. "
            + ("It is far above what healthy engines show." if high else "Thresholds below it reject everything."),
            fix="Compare both sides on one prompt at equal weights: precision of the KV cache and of the LM head, "
            "quantisation, a weight that was not synced, the same chat template. Sync in float32 where it is cheap."
            if high
            else "Nothing to do. Sync weights more often if staleness is most of the drift.",
            evidence={"mean |log-ratio|": size, "mean k3": k3, "share of k3 above the floor": max(0.0, above)},
            settings=settings("same_micro_batch" if high else "less_staleness") if high or stale else {},
        )


def _per_token(binned: Binned, quantity: int) -> Estimate:
    return binned.estimate(lambda means: means[..., quantity] / means[..., 0])

"""Drift that grows from step to step at equal weight age: engine and trainer come apart, whatever the updates do."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.drift.drift_with_age import Ages
from holdfast.audit.judge.checks.lights import GROWTH, KL_EXPERTS, KL_HIGH, growth_severity
from holdfast.audit.judge.finding import Finding, Where
from holdfast.audit.measure.contrast import FEWEST_UNITS, growth, trend_chance
from holdfast.audit.measure.stretches import CLASSES
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

AGES = 4
FEWEST_STEPS = 6
UNLIKELY, SURE = 0.005, 1e-3
"""Chances of so steady a rise in random order: for a finding, and for one that never falls back."""


class DriftWithStep:
    """Compares the last third of the steps with the first, at equal uncertainty and equal weight age.

    The steps are the independent units: each has its own weights. The rise must also be steady: Kendall's test of all
    steps in order.
    """

    name = "drift_with_step"
    asks = "Do engine and trainer stay as close as they were at the start of the run?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs", "step"})

    def __init__(self) -> None:
        self.steps: dict[int, np.ndarray] = {}
        self.ages = Ages()

    def update(self, view: View) -> None:
        """Sum drift, tokens and KL by step, age and uncertainty."""
        stretches = view.stretches
        step = view.step[stretches.sequence]
        age = np.clip(self.ages.of(view), 0, AGES - 1)
        for one in np.unique(step[step >= 0]):
            table = self.steps.setdefault(int(one), np.zeros((3, AGES, CLASSES)))
            for a in np.unique(age[step == one]):
                rows = (step == one) & (age == a)
                table[0, a] += stretches.sums[rows].sum(0)
                table[1, a] += stretches.counts[rows].sum(0)
                table[2, a, 0] += stretches.kl[rows].sum()

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where the rise exceeds GROWTH and is steadier than chance."""
        steps = sorted(one for one, table in self.steps.items() if table[1].sum() > 0)
        if len(steps) < FEWEST_STEPS:
            return
        sums, counts, kl = np.stack([self.steps[one].reshape(3, -1) for one in steps], 1)
        third = len(steps) // 3
        grown = growth((sums[:third], counts[:third]), (sums[-third:], counts[-third:]), paired=False)
        level = levels(sums, counts)
        steady = trend_chance(level) < UNLIKELY and float(np.median(level[-third:]) / np.median(level[:third])) > GROWTH
        if not (steady and grown.value > GROWTH):
            return
        kl_by_step = kl.sum(1) / counts.sum(1)
        last = float(kl[-third:].sum() / counts[-third:].sum())
        aged = "weight_versions" in facts.columns
        frozen = kl_by_step[0] < KL_EXPERTS and last > KL_HIGH and trend_chance(level) < SURE
        yield Finding(
            name=self.name,
            kind="drift",
            severity=growth_severity(grown.value, last),
            headline=f"drift grew {grown.value:.1f} times from steps {steps[0]} to {steps[third - 1]} to steps "
            f"{steps[-third]} to {steps[-1]}"
            + (", at equal age of the weights" if aged else "")
            + (": the first steps agree, and then it only rises, as if the engine kept old weights" if frozen else ""),
            meaning="Engine and trainer move apart while the run goes on. Such runs look well until a mask rejects "
            "most of the batch or the gradient explodes; then they collapse within a few steps."
            + ("" if aged else " The log has no weight versions: growing staleness would look the same."),
            fix="Load the trainer's weights into the engine from scratch and score one batch: if the drift falls back, "
            "the weight sync loses something (a tensor never sent, quantised deltas, stale adapters). If it stays, the "
            "policy has become sharper or its chains longer: raise the engine's precision, compute the head in "
            "float32, and replay the routing of experts.",
            evidence={
                "growth": grown.estimate() if grown.units >= FEWEST_UNITS else grown.value,
                "KL, first third": float(kl[:third].sum() / counts[:third].sum()),
                "KL, last third": last,
                "worst step": steps[int(kl_by_step.argmax())],
            },
            where=Where(steps=tuple(steps[i] for i in np.argsort(-kl_by_step)[:10])),
        )


def levels(sums: Column, counts: Column) -> Column:
    """[steps] drift of each step over what its tokens' conditions would have given in the whole run."""
    with np.errstate(invalid="ignore", divide="ignore"):
        usual = np.nan_to_num(sums.sum(0) / counts.sum(0))
    return sums.sum(1) / np.maximum((counts * usual).sum(1), 1e-300)

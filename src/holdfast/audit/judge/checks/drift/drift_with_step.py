"""Drift that grows from step to step at equal weight age: engine and trainer come apart, whatever the updates do."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.drift.ages import Ages
from holdfast.audit.judge.checks.lights import GROWTH, KL_EXPERTS, KL_HIGH, growth_severity
from holdfast.audit.judge.finding import Finding, Where
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.contrast import FEWEST_UNITS, growth, trend_chance
from holdfast.audit.measure.stretches import CLASSES
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

AGES = 4
FEWEST_STEPS = 6
TOOTH, FALL = 4, 1.25
"""Steps that a tooth of a saw has at least, and the factor by which drift falls at once after one."""
NOISES = 4.0
"""How many standard deviations of the changes from step to step, by their median deviation, that fall is at least."""
CERTAIN = 3.3
"""Standard deviations by which the teeth rise more steadily than chance lets them."""
UNLIKELY, SURE = 0.005, 1e-3
"""Chances of so steady a rise in random order: for a finding, and for one that never falls back."""


class DriftWithStep:
    """Compares the last third of the steps with the first, at equal uncertainty and equal weight age.

    The steps are the independent units: each has its own weights. The rise must also be steady: Kendall's test of all
    steps in order. Drift that rises, falls back at once and rises again is told as such (`saw_teeth`).
    """

    name = "drift_with_step"
    asks = "Do engine and trainer stay as close as they were at the start of the run?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs", "step"})

    def __init__(self) -> None:
        self.ages = Ages(AGES - 1)

    def update(self, view: View) -> None:
        """Sum drift, tokens and KL by step, version and uncertainty."""
        stretches = view.stretches
        step = view.step[stretches.sequence]
        for one in np.unique(step[step >= 0]).tolist():
            for version in np.unique(stretches.version[step == one]).tolist():
                rows = (step == one) & (stretches.version == version)
                cell = np.stack([stretches.sums[rows].sum(0), stretches.counts[rows].sum(0), np.zeros(CLASSES)])
                cell[2, 0] = stretches.kl[rows].sum()
                self.ages.add(one, version, cell)

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where the rise exceeds GROWTH and is steadier than chance."""
        tables: dict[int, Column] = {}
        for one, age, cell in self.ages.by_age():
            tables.setdefault(one, np.zeros((3, AGES, CLASSES)))[:, max(age, 0)] += cell
        steps = [one for one, table in tables.items() if table[1].sum() > 0]
        if len(steps) < FEWEST_STEPS:
            return
        sums, counts, kl = np.stack([tables[one].reshape(3, -1) for one in steps], 1)
        third = len(steps) // 3
        level = levels(sums, counts)
        kl_by_step = kl.sum(1) / counts.sum(1)
        if teeth := saw_teeth(np.log(np.maximum(level, 1e-300))):
            yield _saw_tooth(steps, teeth, level, kl_by_step)
            return
        grown = growth((sums[:third], counts[:third]), (sums[-third:], counts[-third:]), paired=False)
        steady = trend_chance(level) < UNLIKELY and float(np.median(level[-third:]) / np.median(level[:third])) > GROWTH
        if not (steady and grown.value > GROWTH):
            return
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


def saw_teeth(level: Column) -> list[int]:
    """Where a log level falls back to rise again: indices of the first steps of all teeth but the first.

    Empty where it does not. A fall is FALL at least and NOISES times the usual deviation of changes from their
    median; at least two teeth of TOOTH steps must be left, and rise within themselves, together, by CERTAIN
    deviations (Kendall's sums of each tooth added up) and by the logarithm of FALL in the mean.
    """
    change = np.diff(level)
    usual = 1.4826 * float(np.median(np.abs(change - np.median(change)))) if len(change) else 0.0
    falls = (np.flatnonzero(change < -max(np.log(FALL), NOISES * usual)) + 1).tolist()
    teeth = [tooth for tooth in np.split(level, falls) if len(tooth) >= TOOTH]
    if not falls or len(teeth) < 2:
        return []
    rises = sum(float(np.sign(tooth[i + 1 :] - tooth[i]).sum()) for tooth in teeth for i in range(len(tooth)))
    variance = sum(len(tooth) * (len(tooth) - 1) * (2 * len(tooth) + 5) / 18 for tooth in teeth)
    heights = [np.median(tooth[-(len(tooth) // 3) :]) - np.median(tooth[: len(tooth) // 3]) for tooth in teeth]
    height = float(np.mean(heights))
    return falls if rises > CERTAIN * variance**0.5 and height > np.log(FALL) else []


def _saw_tooth(steps: list[int], falls: list[int], level: Column, kl: Column) -> Finding:
    tops = [at - 1 for at in falls] + [len(steps) - 1]
    factor = float(np.mean([level[at - 1] / level[at] for at in falls]))
    back = ", ".join(str(steps[at]) for at in falls[:5])
    return Finding(
        name=DriftWithStep.name,
        kind="drift",
        severity=growth_severity(factor, float(kl[tops].max())),
        headline=f"drift rises from step to step, falls back by a factor of {factor:.1f} at step {back}, and rises "
        "again: something in the engine piles up until a restart clears it",
        meaning="The policies do not come apart: then no restart would mend it. The engine keeps state from older "
        "weights, and more and more of what it computes rests on it.",
        fix="Reset the prefix cache (KV cache) at every weight update, and look for other state that outlives one: "
        "cached encoder outputs, quantisation scales computed once, compiled graphs that hold old tensors, deltas that "
        "are added up. Until it is found, restart the engines when the drift is twice that after a restart.",
        evidence={"fall": factor, "largest KL": float(kl[tops].max()), "times it fell": len(falls)},
        where=Where(steps=tuple(steps[at] for at in falls[:10])),
        settings=settings("no_stale_prefix"),
    )

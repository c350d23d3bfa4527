"""Drift that jumps at one step: a resume, a restart, a changed setting, a weight sync that failed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.drift.drift_with_step import AGES, levels
from holdfast.audit.judge.checks.lights import KL_EXPERTS, KL_HIGH, STRONG
from holdfast.audit.judge.finding import Finding, Where
from holdfast.audit.measure.stretches import CLASSES
from holdfast.audit.measure.tokens import FOLDS
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

BEFORE = 5
"""Steps before a jump that it is compared with."""
FEWEST_TOKENS = 400
CERTAIN = 4.0
"""Standard deviations between the logs of two steps' levels."""
STAYS = 0.5
"""Share of the jump, on a log scale, that the steps after it keep where the drift stays up."""


@dataclass
class _Step:
    """Drift, tokens and KL by freshness of the weights and uncertainty; drift and tokens by fold; rewards."""

    cells: dict[int, Column] = field(default_factory=dict)
    folds: Column = field(default_factory=lambda: np.zeros((2, FOLDS)))
    reward: Column = field(default_factory=lambda: np.zeros(2))


class DriftJump:
    """Compares each step with the BEFORE steps before it, at equal uncertainty and equally fresh weights.

    How fresh weights are is their version less the step, so staleness that sets in over the first steps of an
    asynchronous run is no jump.

    A jump is a step whose level is STRONG times the highest of those, beyond what its prompts' and theirs' spread
    explains (CERTAIN deviations of the logs, each from a jackknife over prompts), at a KL that healthy engines do not
    show. Without weight versions in the log, staleness looks the same; the text says so.
    """

    name = "drift_jump"
    asks = "Does the drift change from one step to the next no more than chance lets it?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs", "step"})

    def __init__(self) -> None:
        self.steps: dict[int, _Step] = {}

    def update(self, view: View) -> None:
        """Sum drift by step, age, uncertainty and fold, and rewards by step."""
        stretches = view.stretches
        step = view.step[stretches.sequence]
        fresh = view.freshness[stretches.sequence]
        fold = view.fold[stretches.sequence]
        reward = view.numbers("reward") if view.has("reward") else None
        for one in np.unique(step[step >= 0]).tolist():
            kept = self.steps.setdefault(one, _Step())
            here = step == one
            for version in np.unique(fresh[here]).tolist():
                rows = here & (fresh == version)
                cell = kept.cells.setdefault(version, np.zeros((3, CLASSES)))
                cell[:2] += stretches.sums[rows].sum(0), stretches.counts[rows].sum(0)
                cell[2, 0] += stretches.kl[rows].sum()
            kept.folds[0] += np.bincount(fold[here], stretches.sums[here].sum(1), FOLDS)
            kept.folds[1] += np.bincount(fold[here], stretches.tokens[here], FOLDS)
            if reward is not None:
                given = reward[(view.step == one) & np.isfinite(reward)]
                kept.reward += float(given.sum()), len(given)

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding for the largest jump."""
        steps = sorted(s for s, kept in self.steps.items() if kept.folds[1].sum() >= FEWEST_TOKENS)
        if len(steps) < 2:
            return
        sums, counts, kl = self._cells(steps)
        level = np.log(np.maximum(levels(sums, counts), 1e-300))
        error = np.array([_error(self.steps[s].folds) for s in steps])
        mean_kl = kl.sum(1) / counts.sum(1)
        best = max(range(1, len(steps)), key=lambda k: self._rise(level, k)[0])
        rise, before = self._rise(level, best)
        spread = float(np.hypot(error[best], error[before]))
        if rise < np.log(STRONG) or rise < CERTAIN * spread or mean_kl[best] < KL_EXPERTS:
            return
        after = level[best:] - level[before]
        stays = len(after) > 1 and float(np.median(after[1:])) > STAYS * rise
        up = [steps[k] for k in range(best, len(steps)) if stays or level[k] - level[before] > STAYS * rise]
        yield self._finding(steps, best, float(np.exp(rise)), mean_kl, up, stays, facts)

    def _cells(self, steps: list[int]) -> Column:
        """[3, steps, ages · CLASSES] drift, tokens and KL; the ages, from the freshest, beyond AGES taken together."""
        best = max((version for s in steps for version in self.steps[s].cells), default=0)
        table = np.zeros((3, len(steps), AGES, CLASSES))
        for row, s in enumerate(steps):
            for version, cell in self.steps[s].cells.items():
                table[:, row, min(best - version, AGES - 1)] += cell
        return table.reshape(3, len(steps), -1)

    @staticmethod
    def _rise(level: Column, at: int) -> tuple[float, int]:
        """By how much a step is above the highest of those before it, and which that is."""
        first = max(0, at - BEFORE)
        highest = first + int(level[first:at].argmax())
        return float(level[at] - level[highest]), highest

    def _finding(
        self, steps: list[int], at: int, factor: float, kl: Column, up: list[int], stays: bool, facts: Facts
    ) -> Finding:
        step, last = steps[at], steps[at - 1]
        aged = "weight_versions" in facts.columns
        rewards = self._rewards(steps[:at], up)
        return Finding(
            name=self.name,
            kind="drift",
            severity="critical" if kl[at] > KL_HIGH else "warning",
            headline=f"drift jumps at step {step} to {factor:.0f} times that of step {last} (KL {kl[at - 1]:.2g} to "
            f"{kl[at]:.2g} per token)"
            + (" and stays there" if stays else f", at {len(up)} step{'s' if len(up) > 1 else ''} in all")
            + (f"; the reward goes from {rewards[0]:.2g} to {rewards[1]:.2g}" if rewards else ""),
            meaning="Policies move apart gradually; a jump is an event. From one step to the next the engine has other "
            "weights, settings or numerics than the trainer believes."
            + ("" if aged else " The log has no weight versions: staleness that sets in at once would look the same."),
            fix=f"Find what happened between steps {last} and {step}: a resume or restart that loaded weights or "
            "merged an adapter twice, a weight sync that failed or was skipped, a server that came back with its base "
            "model, a setting that changed. Score one batch of that step with the checkpoint that it was to come from.",
            evidence={
                "growth": factor,
                "KL before": float(kl[at - 1]),
                "KL at the jump": float(kl[at]),
                "steps with it": len(up),
                **({"reward before": rewards[0], "reward with it": rewards[1]} if rewards else {}),
            },
            where=Where(steps=tuple(up[:10])),
        )

    def _rewards(self, before: list[int], after: list[int]) -> tuple[float, float] | None:
        """Mean rewards before and with the jump, where they are recorded and differ by more than a fifth."""
        sums = [np.sum([self.steps[s].reward for s in part], 0) for part in (before, after)]
        if not all(count for _, count in sums):
            return None
        first, second = (float(total / count) for total, count in sums)
        return (first, second) if abs(second - first) > 0.2 * max(abs(first), abs(second)) else None


def _error(folds: Column) -> float:
    """Standard error of the log of Σ drift / Σ tokens, by a jackknife over the filled folds."""
    sums, tokens = folds[:, folds[1] > 0]
    count = len(sums)
    if count < 2:
        return 0.5
    left_out = np.log(np.maximum((sums.sum() - sums) / (tokens.sum() - tokens), 1e-300))
    return float(np.sqrt((count - 1) * left_out.var()))

"""Drift that grows with the age of the weights that sampled: rollouts too stale for the updates made since."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.drift.ages import Ages
from holdfast.audit.judge.checks.lights import GROWTH, KL_EXPERTS, KL_HIGH, STRONG
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.binned import power_bin
from holdfast.audit.measure.contrast import Groups, fold_sums
from holdfast.audit.measure.stretches import CLASSES
from holdfast.audit.measure.tokens import FOLDS
from holdfast.audit.measure.view import View

AGES = 8
"""Classes of age: 0, 1, 2 to 3, 4 to 7, …"""
MOST_STEPS = 512
"""Steps that are kept, those of the smallest hashes."""


class DriftWithAge:
    """Compares tokens sampled with older weights with those of the newest, at equal uncertainty.

    Some growth is the price of sampling while training. It is reported once the oldest tokens' KL is beyond what
    healthy engines show at equal weights (KL_EXPERTS), and it is a warning beyond KL_HIGH.
    """

    name = "drift_with_age"
    asks = "Are rollouts of older weights still close to the policy that is trained?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs", "weight_versions"})

    def __init__(self) -> None:
        self.ages = Ages(1 << (AGES - 2), MOST_STEPS)

    def update(self, view: View) -> None:
        """Sum the drift by step and version."""
        version, step = view.stretches.version, self.ages.steps_of(view)[view.stretches.sequence]
        for one in np.unique(step).tolist():
            for v in np.unique(version[step == one]).tolist():
                self.ages.add(one, v, fold_sums(view, np.flatnonzero((step == one) & (version == v))))

    def _groups(self) -> Groups:
        """Sums by class of age."""
        cells = np.zeros((AGES, 3, FOLDS, CLASSES))
        for _, age, sums in self.ages.by_age():
            if age >= 0:
                cells[int(power_bin(np.array([age]), AGES)[0])] += sums
        return Groups.of([*cells])

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where the growth exceeds GROWTH beyond chance and the drift is more than numerics."""
        groups = self._groups()
        known = np.flatnonzero(groups.tokens() > 0)
        tests = [(int(old), groups.growth([int(known[0])], [int(old)])) for old in known[1:]]
        found = [(old, g) for old, g in tests if g.surely_above(GROWTH) and groups.kl_of([old]) > KL_EXPERTS]
        if not found:
            return
        old, grown = found[-1]
        kl = {_words(int(age)): groups.kl_of([int(age)]) for age in known}
        worst = kl[_words(old)]
        share = float(groups.tokens()[old] / groups.tokens().sum())
        yield Finding(
            name=self.name,
            kind="drift",
            severity="info" if worst < KL_HIGH else "critical" if worst > STRONG * KL_HIGH else "warning",
            headline=f"tokens sampled {_words(old)} updates ago drift {grown.value:.1f} times as much as the newest, "
            f"to a KL of {worst:.2g} per token",
            meaning=f"{share:.0%} of all tokens are that old. Each update moves the policy away from what they were "
            "sampled from, and a clip or mask has to give up more of them with every version.",
            fix="Allow less staleness, sample more often with new weights, or make each update smaller. Where old "
            "rollouts must be used, weigh and mask them against the policy that sampled them.",
            evidence={"growth": grown.estimate(), **{f"KL, age {age}": value for age, value in kl.items()}},
            settings=settings("less_staleness"),
        )


def _words(age: int) -> str:
    """The ages of a class."""
    return str(age) if age < 2 else f"{1 << (age - 1)} to {(1 << age) - 1}"

"""Drift that grows with the age of the weights that sampled: rollouts too stale for the updates made since."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.lights import GROWTH, KL_EXPERTS, KL_HIGH, STRONG
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.binned import power_bin
from holdfast.audit.measure.contrast import Groups
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

AGES = 8
"""Classes of age: 0, 1, 2 to 3, 4 to 7, …"""


class Ages:
    """Age of a token's weights: how many versions behind the newest that sampled for its step or an earlier one.

    The newest is the newest read so far. One version is one update where the source counts updates.
    """

    def __init__(self) -> None:
        self.newest: dict[int, int] = {}

    def of(self, view: View) -> Column:
        """[R] age of each stretch's weights, -1 where not recorded."""
        stretches, step = view.stretches, view.step
        for one in np.unique(step):
            versions = stretches.version[step[stretches.sequence] == one]
            before = max((newest for known, newest in self.newest.items() if known <= one), default=-1)
            self.newest[int(one)] = max(before, int(versions.max(initial=-1)))
        if len(self.newest) > 1024:
            self.newest = dict(sorted(self.newest.items())[-512:])
        newest = np.array([self.newest[int(one)] for one in step])
        return np.where(stretches.version < 0, -1, newest[stretches.sequence] - stretches.version)


class DriftWithAge:
    """Compares tokens sampled with older weights with those of the newest, at equal uncertainty.

    Some growth is the price of sampling while training. It is reported once the oldest tokens' KL is beyond what
    healthy engines show at equal weights (KL_EXPERTS), and it is a warning beyond KL_HIGH.
    """

    name = "drift_with_age"
    asks = "Are rollouts of older weights still close to the policy that is trained?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs", "weight_versions"})

    def __init__(self) -> None:
        self.groups = Groups(AGES)
        self.ages = Ages()

    def update(self, view: View) -> None:
        """Sum the drift by age."""
        age = self.ages.of(view)
        self.groups.add(view, np.where(age < 0, -1, power_bin(age, AGES)))

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where the growth exceeds GROWTH beyond chance and the drift is more than numerics."""
        known = np.flatnonzero(self.groups.tokens() > 0)
        tests = [(int(old), self.groups.growth([int(known[0])], [int(old)])) for old in known[1:]]
        found = [(old, g) for old, g in tests if g.surely_above(GROWTH) and self.groups.kl_of([old]) > KL_EXPERTS]
        if not found:
            return
        old, grown = found[-1]
        kl = {_words(int(age)): self.groups.kl_of([int(age)]) for age in known}
        worst = kl[_words(old)]
        share = float(self.groups.tokens()[old] / self.groups.tokens().sum())
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

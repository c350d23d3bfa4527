"""Drift that differs between environments: one of them is sampled, parsed or tokenised in another way."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.lights import GROWTH, growth_severity
from holdfast.audit.judge.finding import Finding
from holdfast.audit.measure.contrast import Groups
from holdfast.audit.measure.view import View

ENVIRONMENTS = 64


class DriftByEnvironment:
    """Compares each environment with all others together, at equal uncertainty; one test in a thousand errs in all.

    The first ENVIRONMENTS - 1 names are told apart, the rest count as one.
    """

    name = "drift_by_environment"
    asks = "Do all environments drift alike?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs", "environment"})

    def __init__(self) -> None:
        self.groups = Groups(ENVIRONMENTS)
        self.names: dict[str, int] = {}

    def update(self, view: View) -> None:
        """Sum the drift by environment."""
        words = view.chunk.words["environment"]
        for word in set(words.tolist()) - {None}:
            if len(self.names) < ENVIRONMENTS - 1:
                self.names.setdefault(word, len(self.names))
        number = np.array([-1 if word is None else self.names.get(word, ENVIRONMENTS - 1) for word in words])
        self.groups.add(view, number[view.stretches.sequence])

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding for the environment that exceeds the others most, where it does so beyond chance."""
        every = np.flatnonzero(self.groups.tokens())
        if len(every) < 2:
            return
        grown = {int(one): self.groups.growth(every[every != one], [int(one)]) for one in every}
        found = {one: g for one, g in grown.items() if g.surely_above(GROWTH, 0.001 / len(every))}
        if not found:
            return
        worst = max(found, key=lambda one: found[one].value)
        names = {number: name for name, number in self.names.items()} | {ENVIRONMENTS - 1: "others"}
        kl = {names[int(one)]: self.groups.kl_of([int(one)]) for one in every}
        yield Finding(
            name=self.name,
            kind="drift",
            severity=growth_severity(found[worst].value, kl[names[worst]]),
            headline=f"environment {names[worst]!r} drifts {found[worst].value:.1f} times as much as the others",
            meaning="What one environment does differently (template, tools, sampling settings, length) reaches the "
            "ratios. Masks will reject its responses, and the others will make up what the policy learns.",
            fix=f"Score one response of {names[worst]!r} by hand: same token ids, same temperature and support on both "
            "sides. Set thresholds only after its cause is found.",
            evidence={
                "growth": found[worst].estimate(),
                **{f"KL, {name}": value for name, value in sorted(kl.items(), key=lambda item: -item[1])[:8]},
            },
        )

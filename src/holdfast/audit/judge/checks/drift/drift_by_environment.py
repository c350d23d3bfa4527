"""Drift that differs between environments: one of them is sampled, parsed or tokenised in another way."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.lights import GROWTH, growth_severity
from holdfast.audit.judge.finding import Finding
from holdfast.audit.measure.adding import add_up, hash_text
from holdfast.audit.measure.contrast import Groups, fold_sums
from holdfast.audit.measure.stretches import CLASSES
from holdfast.audit.measure.tokens import FOLDS
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

ENVIRONMENTS = 64


class DriftByEnvironment:
    """Compares each environment with all others together, at equal uncertainty; one test in a thousand errs in all.

    ENVIRONMENTS - 1 names are told apart, those of the smallest hashes; the rest count as one.
    """

    name = "drift_by_environment"
    asks = "Do all environments drift alike?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs", "environment"})

    def __init__(self) -> None:
        self.cells: dict[str, Column] = {}
        self.others = np.zeros((3, FOLDS, CLASSES))

    def update(self, view: View) -> None:
        """Sum the drift by environment."""
        words = view.chunk.words["environment"][view.stretches.sequence]
        for word in set(words.tolist()) - {None}:
            cell = fold_sums(view, np.flatnonzero(words == word))
            self.cells[word] = self.cells[word] + cell if word in self.cells else cell
        self._bound()

    def merge(self, other: DriftByEnvironment) -> None:
        """Add another's sums."""
        add_up(self.cells, other.cells)
        self.others += other.others
        self._bound()

    def _bound(self) -> None:
        for word in sorted(self.cells, key=lambda word: (hash_text(word), word))[ENVIRONMENTS - 1 :]:
            self.others += self.cells.pop(word)

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding for the environment that exceeds the others most, where it does so beyond chance."""
        names = [*sorted(self.cells), "others"]
        groups = Groups.of([*(self.cells[name] for name in names[:-1]), self.others])
        every = np.flatnonzero(groups.tokens())
        if len(every) < 2:
            return
        grown = {int(one): groups.growth(every[every != one], [int(one)]) for one in every}
        found = {one: g for one, g in grown.items() if g.surely_above(GROWTH, 0.001 / len(every))}
        if not found:
            return
        worst = max(found, key=lambda one: found[one].value)
        kl = {names[int(one)]: groups.kl_of([int(one)]) for one in every}
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

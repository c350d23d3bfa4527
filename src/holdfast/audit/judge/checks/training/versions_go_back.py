"""Weight versions that go back: an engine that was given old weights again."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.finding import Finding, Where
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.adding import First
from holdfast.audit.measure.view import View

STAYS = 2
"""Steps in a row whose freshest rollouts must be older than those of an earlier step."""
FEWEST = 3
"""Sequences within which the version falls."""


class VersionsGoBack:
    """Follows the newest weight version among each step's rollouts, and the versions along each response.

    Weights are only ever replaced by newer ones. A step may hold old rollouts alone by chance; where the newest
    version of STAYS steps in a row, or of the last step and all rollouts in it, is below one that was seen before by
    more than rollouts of a step are apart, the engine went back. So it did where the version falls within a response.
    """

    name = "versions_go_back"
    asks = "Do weight versions only ever rise?"
    needs = frozenset({"weight_versions", "step"})

    def __init__(self) -> None:
        self.steps: dict[int, tuple[int, int]] = {}
        self.falls = 0
        self.sequences = First()

    def update(self, view: View) -> None:
        """Note the oldest and newest version by step, and responses within which it falls."""
        versions, starts, ends = view.tokens("weight_versions"), view.chunk.offsets[:-1], view.chunk.offsets[1:]
        rows = view.filled[view.chunk.present["weight_versions"][view.filled]]
        first, last = versions[starts[rows]], versions[ends[rows] - 1]
        step = view.step[rows]
        known = (first >= 0) & (last >= 0)
        found = rows[known & (last < first)]
        self.falls += len(found)
        self.sequences.add((view.first_sequence + found[:10]).tolist())
        for one in np.unique(step[known & (step >= 0)]).tolist():
            here = known & (step == one)
            low, high = self.steps.get(one, (1 << 62, -1))
            self.steps[one] = (
                min(low, int(np.minimum(first[here], last[here]).min())),
                max(high, int(np.maximum(first[here], last[here]).max())),
            )

    def merge(self, other: VersionsGoBack) -> None:
        """Add another's steps."""
        for step, (low, high) in other.steps.items():
            mine = self.steps.get(step, (low, high))
            self.steps[step] = (min(low, mine[0]), max(high, mine[1]))
        self.falls += other.falls
        self.sequences.merge(other.sequences)

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """One finding: back from step to step, or within responses."""
        back = self._back()
        if back is None and self.falls < FEWEST:
            return
        if back:
            step, newest, before, steps = back
            said = (
                f"from step {step} on rollouts are of weight version {newest} at the newest, after version {before} "
                "had been used"
            )
            where = Where(steps=tuple(steps[:10]))
        else:
            said = f"in {self.falls:,} responses the weight version falls from one token to a later one"
            where = Where(sequences=tuple(self.sequences.numbers))
        yield Finding(
            name=self.name,
            kind="training",
            severity="warning",
            headline=f"weight versions go back: {said}",
            meaning="The engine samples with weights that training has left behind. Its rollouts are far off-policy, "
            "and look like a sudden jump of the drift.",
            fix="Look at what happened there: a resume that loaded an older checkpoint into the engine, a server that "
            "came back with its first weights, a replica that missed updates, a version counter that was reset. Load "
            "the trainer's weights into every engine at the start and after each restart.",
            evidence={"responses in which it falls": self.falls, **({"newest before": back[2]} if back else {})},
            where=where,
            settings=settings("weights_at_start"),
        )

    def _back(self) -> tuple[int, int, int, list[int]] | None:
        """(first step, its newest version, the newest before, all such steps) of the first lasting fall."""
        steps = sorted(self.steps)
        spread = max((high - low for low, high in self.steps.values()), default=0)
        newest = -1
        for k, step in enumerate(steps):
            ahead = [self.steps[s][1] for s in steps[k : k + STAYS]]
            if len(ahead) == STAYS and max(ahead) < newest - spread:
                behind = [s for s in steps[k:] if self.steps[s][1] < newest - spread]
                return step, self.steps[step][1], newest, behind
            newest = max(newest, self.steps[step][1])
        return None

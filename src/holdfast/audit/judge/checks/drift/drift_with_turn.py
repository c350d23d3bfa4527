"""Drift that grows from turn to turn: text put together differently for the engine and for the trainer."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.lights import GROWTH, growth_severity
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.contrast import Groups
from holdfast.audit.measure.view import View

TURNS = 16


class DriftWithTurn:
    """Compares the later turns of multi-turn responses with the first turn of the same prompts, at equal uncertainty.

    Turns from TURNS - 1 on count as one.
    """

    name = "drift_with_turn"
    asks = "Is the drift after a tool's answer as small as in the first turn?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs", "turn_ids"})

    def __init__(self) -> None:
        self.groups = Groups(TURNS)

    def update(self, view: View) -> None:
        """Sum the drift of multi-turn responses by turn."""
        stretches = view.stretches
        last = view.max(view.tokens("turn_ids"))
        several = last[stretches.sequence] > 0
        self.groups.add(view, np.where(several, np.minimum(stretches.turn, TURNS - 1), -1))

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where the growth exceeds GROWTH beyond chance."""
        later = np.flatnonzero(self.groups.tokens())
        later = later[later > 0]
        if len(later) == 0:
            return
        grown = self.groups.growth([0], later)
        if not grown.surely_above(GROWTH):
            return
        kl = {int(turn): self.groups.kl_of([int(turn)]) for turn in (0, *later)}
        worst = max(kl, key=lambda turn: kl[turn])
        yield Finding(
            name=self.name,
            kind="drift",
            severity=growth_severity(grown.value, kl[worst]),
            headline=f"tokens after the first turn drift {grown.value:.1f} times as much as those before; turn {worst} "
            f"is worst, with a KL of {kl[worst]:.2g} per token",
            meaning="The trainer scores later turns in another context than the engine saw, or under other weights. "
            "Every ratio of these turns carries that difference and none of it is learning.",
            fix="Compare the token ids that the engine was sent with those that the trainer scores, at the first turn "
            "boundary: chat template, tool messages that were decoded and tokenised again, thinking that was cut out. "
            "Pass token ids on, never text. If drift_with_depth is reported too, length is the simpler explanation.",
            evidence={"growth": grown.estimate(), **{f"KL, turn {turn}": value for turn, value in kl.items()}},
            settings=settings("token_ids_not_text"),
        )

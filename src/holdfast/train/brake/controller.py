"""guard.brake = "controller": held-out rollouts set the learning rate, and undo a step that is not worth taking.

Two forward passes over rollouts that are there already, no new answers: docs/theory/certificates.md [22].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from holdfast.train.brake.judge import NOT_FINITE, finite, log_weight
from holdfast.train.brake.step_gain import StepGain, step_gain
from holdfast.train.policy.forward import stats_of
from holdfast.train.sampling.data import Rollouts
from holdfast.train.setup import Run
from holdfast.types import TokenStats

SLOWER, FASTER = 0.5, 2.0
"""The least and the most that one verdict multiplies the learning rate by."""


@dataclass(frozen=True)
class Weighed:
    """What the held-out rollouts say of one step, `found`; None where its numbers are not finite.

    `z` is how many standard errors are taken off its gain.
    """

    prompts: int
    found: StepGain | None
    z: float

    @property
    def best(self) -> float | None:
        """c*, the multiple of the step at which its lower bound is highest; None where nothing follows."""
        return self.found.best(self.z) if self.found is not None and self.found.speaks else None

    @property
    def braked(self) -> bool:
        """The step's own lower bound is not above 0, which is to say that c* is ½ at most; or it is not finite."""
        return self.found is None or (self.best is not None and self.best <= SLOWER)

    @property
    def factor(self) -> float:
        """c* between ½ and 2; 1 where nothing follows, ½ where the step is not finite."""
        if self.found is None:
            return SLOWER
        return 1.0 if self.best is None else min(max(self.best, SLOWER), FASTER)

    def metrics(self) -> dict[str, int | float]:
        """For the step's line, as far as there are numbers."""
        record: dict[str, int | float] = {"brake_prompts": self.prompts}
        if self.found is not None:
            record |= {"brake_gain": self.found.gain, "brake_gain_se": self.found.error}
            record |= {"brake_cost": self.found.cost, "brake_fisher": self.found.fisher}
            record |= {"brake_informed": self.found.informed}
        return record | ({} if self.best is None or math.isinf(self.best) else {"brake_best": self.best})

    def warnings(self) -> list[str]:
        """That a step was not taken, or not judged, and why."""
        if self.found is None:
            return [NOT_FINITE]
        if self.best is None:
            why = (
                "it moved none of the held-out responses"
                if self.found.fisher == 0
                else f"rewards differ within {self.found.informed} of {self.prompts} held-out prompts, and it takes 2"
            )
            return [f"brake: the step was taken without a verdict, and the learning rate left as it is: {why}"]
        if not self.braked:
            return []
        return [
            f"brake: the step was not taken: by {self.prompts} held-out prompts it gains {self.found.gain:.3g} "
            f"(standard error {self.found.error:.3g}) to first order, and its length may cost "
            f"{self.found.cost / 2:.3g}; the learning rate is halved"
        ]


class Controller:
    """Weighs every step by the rollouts held out of it."""

    def __init__(self, run: Run) -> None:
        self.config, self.policy, self.parameters = run.config, run.policy, run.updater.parameters

    def judge(self, held: Rollouts, before: TokenStats, step: int) -> Weighed:
        """How much the step changed the held-out responses, and which way."""
        prompts, guard = len(held.group_ids.unique()), self.config.guard
        if not finite(self.parameters):
            return Weighed(prompts, None, guard.brake_z)
        rows = torch.arange(len(held.prompts))
        after = stats_of(self.policy, held.sequences, rows, self.config.batch.micro_batch_tokens)
        change = after.logprobs.double() - before.logprobs.double()
        moved = torch.where(held.sequences.response_mask, change, 0.0).sum(-1)
        found = step_gain(moved, log_weight(held, before), held.rewards, held.group_ids, guard.brake_rewards[0])
        known = math.isfinite(found.gain) and math.isfinite(found.fisher)
        return Weighed(prompts, found if known else None, guard.brake_z)

    def undone(self, step: int) -> None:
        """Nobody else was given the weights."""

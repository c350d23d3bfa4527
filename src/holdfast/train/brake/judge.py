"""What judges a step by prompts that were held out of it, and what it says: the part in which brakes differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.errors import DataError
from holdfast.train.sampling.data import Rollouts
from holdfast.types import TokenStats

CAP = 10.0
"""Largest importance weight of a held-out response, fixed beforehand as it must be."""

ROUNDING = 1e-6
"""Relative: rewards are kept in float32."""

NOT_FINITE = "brake: the step was not taken: it leaves weights that are not finite"


@runtime_checkable
class Verdict(Protocol):
    """What the held-out prompts say of one step."""

    @property
    def braked(self) -> bool:
        """Whether the step is undone."""
        ...

    @property
    def factor(self) -> float | None:
        """What the learning rate of the steps to come is multiplied by; None from a judge that leaves it alone."""
        ...

    def metrics(self) -> dict[str, int | float]:
        """What the verdict rests on, for the step's line, as far as there are numbers."""
        ...

    def warnings(self) -> list[str]:
        """What a person should know."""
        ...


@runtime_checkable
class Judge(Protocol):
    """Looks at a step between its last optimiser step and the engine's new weights."""

    def judge(self, held: Rollouts, before: TokenStats, step: int) -> Verdict:
        """The verdict on the weights as they are now; `before` is the policy on the held-out rollouts before the step.

        Raises:
            DataError: a reward outside `guard.brake_rewards`.
        """
        ...

    def undone(self, step: int) -> None:
        """The weights are again what they were before the step."""
        ...


def finite(parameters: Sequence[Tensor]) -> bool:
    """Whether an update left numbers."""
    return all(bool(p.isfinite().all()) for p in parameters)


def log_ratio(held: Rollouts, before: TokenStats) -> Float[Tensor, "B T"]:
    """log θ/p of each token: the policy before the step against the one that sampled; zero outside the response."""
    found = before.logprobs.double() - held.rollout_logprobs.double()
    return torch.where(held.sequences.response_mask, found, 0.0)


def log_weight(held: Rollouts, before: TokenStats) -> Float[Tensor, " B"]:
    """The logarithm of each response's importance weight, cut at `CAP`."""
    return log_ratio(held, before).sum(-1).clamp(max=math.log(CAP))


def check_rewards(rewards: Sequence[float], limits: Sequence[float], step: int) -> None:
    """Raise DataError for a reward outside the limits in which every judge takes rewards to lie."""
    low, high = limits
    room = ROUNDING * max(abs(low), abs(high))
    if outside := [reward for reward in rewards if not low - room <= reward <= high + room]:
        raise DataError(
            f"step {step}: a reward of {outside[0]:g} lies outside guard.brake_rewards = {[low, high]}, in which "
            "the brake's proof takes every reward to lie: set it to the lowest and highest that there can be, or "
            'guard.brake = "off"'
        )

"""Whether an objective must see the whole optimiser step before its first gradient, asked without any data."""

from __future__ import annotations

from dataclasses import fields

import torch
from jaxtyping import Bool
from torch import Tensor

from holdfast.objectives.objective import Objective
from holdfast.types import Batch, TokenStats


def whole_step_parts(objective: Objective) -> list[str]:
    """The parts that need the current policy on every sequence of the step before its first gradient.

    Empty for an objective whose step may be taken micro-batch by micro-batch, knowing the counts alone.
    """
    prepared = objective.prepare(*stand_in(torch.ones(1, 1, dtype=torch.bool)), validate=False).prepared
    parts = [part.kind() for part, statistic in zip(objective.parts, prepared, strict=True) if statistic is not None]
    return parts + (["normalize over 'accepted'"] if objective.normalize.over == "accepted" else [])


def stand_in(mask: Bool[Tensor, "B T"]) -> tuple[Batch, TokenStats]:
    """Zeros for everything but the mask: enough for a plan that does not look at the policy."""
    zeros = torch.zeros(mask.shape, device=mask.device)
    numbers = torch.zeros(mask.shape, dtype=torch.long, device=mask.device)
    names = ("advantages", "old_logprobs", "rollout_logprobs", "ref_logprobs", "teacher_logprobs")
    batch = Batch(
        response_mask=mask,
        turn_ids=numbers,
        sequence_ids=torch.arange(len(mask), device=mask.device),
        group_ids=torch.zeros(len(mask), dtype=torch.long, device=mask.device),
        **dict.fromkeys(names, zeros),
    )
    return batch, TokenStats(**dict.fromkeys((f.name for f in fields(TokenStats)), zeros))

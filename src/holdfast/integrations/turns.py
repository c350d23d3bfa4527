"""Turns of a conversation from the mask alone, for trainers that record no others."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def turn_ids(mask: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Number the runs of response tokens from 0: what separates two of them is tool output."""
    starts = mask & ~torch.nn.functional.pad(mask, (1, 0))[:, :-1]
    return (starts.cumsum(dim=-1) - 1).clamp(min=0)

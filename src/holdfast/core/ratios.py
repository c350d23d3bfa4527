"""Log-ratios and the pools that turn token quantities into sequence or turn quantities.

Everything downstream works on log-ratios; this is the only place where one is clamped.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Largest |log ratio| that leaves this module: exp(20) is 4.9e8, far outside any trust region, and float32-safe."""

PoolOver = Literal["token", "sequence_mean", "sequence_sum", "turn_mean", "turn_sum"]


def log_ratio(
    logprobs: Float[Tensor, "B T"], reference: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """log π(y_t|c_t) − log μ(y_t|c_t), zero where `mask` is False, clamped to ±20.

    Masked positions may hold anything, NaN included: they reach neither the value nor the gradient.
    """
    difference = masked(logprobs, mask) - masked(reference, mask)
    return difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def masked(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """`values` with exact zeros where `mask` is False, in value and in gradient."""
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))


def pool(
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    over: PoolOver,
    turn_ids: Int[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T"] | Float[Tensor, "B 1"]:
    """Mean or sum of `values` over the response tokens of a sequence or of a turn.

    sequence_mean: (1/n_i) Σ_t m_t x_t;  sequence_sum: Σ_t m_t x_t, both [B, 1];  turn_*: the same within each turn,
    read back at every token of the turn, [B, T];  token: unchanged. An empty sequence or turn gives 0.
    """
    if over == "token":
        return values
    kept = masked(values, mask)
    if over in ("sequence_mean", "sequence_sum"):
        total = kept.sum(dim=-1, keepdim=True)
        if over == "sequence_sum":
            return total
        return total / mask.sum(dim=-1, keepdim=True).clamp(min=1).to(total.dtype)
    assert turn_ids is not None, "a turn pool needs turn_ids; Objective checks this"
    # A turn number never exceeds the number of tokens, so T slots hold every turn without asking the device how many.
    slots = torch.zeros_like(kept)
    total = slots.scatter_add(1, turn_ids, kept)
    if over == "turn_mean":
        total = total / slots.scatter_add(1, turn_ids, mask.to(kept.dtype)).clamp(min=1)
    return total.gather(1, turn_ids)

"""A reduction is a [B, T] weight made from a mask and global counts, never a bare mean.

Because the counts are those of the whole optimiser step, the shares of micro-batches and ranks add up to exactly the
loss of the whole batch.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.types import Counts

Reduction = Literal["token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "fixed_length"]


def reduction_weights(
    mask: Bool[Tensor, "B T"],
    counts: Counts,
    reduction: Reduction,
    length: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "..."]:
    """The weight n_it with which each masked-in token enters the loss: [B, 1], or one number where all have the same.

    With N sequences and K tokens in the optimiser step and n_i tokens in sequence i:
    token_mean 1/K (DAPO);  sequence_mean_token_mean 1/(N n_i) (GRPO, GSPO);  sequence_mean_token_sum 1/N (LUSPO);
    fixed_length 1/(N L) with L = `length` tokens (Dr.GRPO).
    """
    if reduction == "token_mean":
        return counts.tokens.clamp(min=1).to(dtype).reciprocal()
    each = counts.sequences.clamp(min=1).to(dtype).reciprocal()
    if reduction == "sequence_mean_token_sum":
        return each
    if reduction == "fixed_length":
        assert length is not None, "fixed_length needs a length; Normalize checks this"
        return each / length
    return each / mask.sum(dim=-1, keepdim=True).clamp(min=1).to(dtype)

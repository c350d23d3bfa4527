"""Drawing the next tokens: what is sampled, and the distribution it is sampled from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.rollout.engine import Sampling, sampling_logprobs

BLOCK = 256
"""Tokens whose probabilities are summed before they are cumulated."""


class Drawn(NamedTuple):
    """One token per row: `tokens` [rows], their `logprobs` [rows], all log-probabilities `distribution` [rows, V]."""

    tokens: Tensor
    logprobs: Tensor
    distribution: Tensor

    def of(self, rows: Tensor) -> Drawn:
        """These rows."""
        return Drawn(*(part[rows] for part in self))


def next_tokens(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Drawn:
    """One token per row of logits [rows, V], by a number in [0, 1) for each row."""
    distribution = sampling_logprobs(logits, sampling)
    tokens = draw(distribution, uniforms)
    return Drawn(tokens, distribution.gather(1, tokens[:, None]).squeeze(1), distribution)


def draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-CDF draw: the first token whose cumulated probability exceeds u, never an impossible one.

    Probabilities are cumulated in float64; of a vocabulary larger than a block, over blocks of tokens first, then over
    the tokens of the block that it is. The largest u, 1 − 2⁻⁵³, times the whole is rounded to less than the whole.
    """
    probabilities, last = logprobs.exp(), logprobs.shape[1] - 1
    if last < BLOCK:
        cumulated = probabilities.cumsum(dim=1, dtype=torch.float64)
        token = torch.searchsorted(cumulated, uniforms[:, None] * cumulated[:, -1:], right=True)
        return token.squeeze(1).clamp_(max=last)  # not a number has no place; it is reported later
    blocks = functional.pad(probabilities, (0, -logprobs.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    ends = functional.pad(blocks.sum(dim=2).cumsum(dim=1, dtype=torch.float64), (1, 0))
    threshold = uniforms[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, threshold, right=True).clamp_(max=ends.shape[1] - 1) - 1
    chosen = blocks[torch.arange(len(blocks), device=block.device), block[:, 0]]
    cumulated = chosen.cumsum(dim=1, dtype=torch.float64)
    # A block as a whole is summed in float32 and may come out larger than its parts one after the other.
    whole = cumulated[:, -1:]
    within = torch.minimum(threshold - ends.gather(1, block), torch.nextafter(whole, torch.zeros_like(whole)))
    token = block * BLOCK + torch.searchsorted(cumulated, within, right=True)
    return token.squeeze(1).clamp_(max=last)

"""The tokens that could be drawn at each position: all ids, one position after the other, and how many each has.

A nucleus has ten tokens at one position and thousands at the next, so that a table would be mostly filling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def support_of(logprobs: Float[Tensor, "T V"]) -> tuple[Int[Tensor, " M"], Int[Tensor, " T"]]:
    """The ids of each row that are not -inf, ascending, and their numbers."""
    row, token = (logprobs > -torch.inf).nonzero(as_tuple=True)
    return token.int(), torch.bincount(row, minlength=len(logprobs)).int()


def support_rows(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, " M"], Int[Tensor, " T"]]:
    """The same of lists of ids."""
    ids = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
    return ids, torch.tensor([len(row) for row in rows], dtype=torch.int32)


def first_rows(
    ids: Int[Tensor, " M"], sizes: Int[Tensor, " T"], count: int
) -> tuple[Int[Tensor, " m"], Int[Tensor, " t"]]:
    """What the first `count` positions have."""
    return ids[: int(sizes[:count].sum())], sizes[:count]


def owners(sizes: Int[Tensor, " T"]) -> Int[Tensor, " M"]:
    """The position to which each id belongs."""
    return torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes.long())


def named(ids: Int[Tensor, " M"], sizes: Int[Tensor, " T"], tokens: Int[Tensor, " T"]) -> Bool[Tensor, " T"]:
    """Whether the ids of each position have its token among them."""
    row = owners(sizes)
    hits = torch.zeros(len(sizes), dtype=torch.long, device=ids.device)
    return hits.index_add_(0, row, (ids == tokens[row]).long()) > 0


def outside(ids: Int[Tensor, " M"], sizes: Int[Tensor, " N"], vocabulary: int) -> Bool[Tensor, "N V"]:
    """Which tokens of the vocabulary a position does not name."""
    found = torch.ones(len(sizes), vocabulary, dtype=torch.bool, device=ids.device)
    found[owners(sizes), ids.long()] = False
    return found

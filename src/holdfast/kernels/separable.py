"""The head for losses that are sums over tokens: one pass, each tile of logits made once.

A loss is separable where the gradient of a row depends on that row alone: token-level gates, or sequence weights and
trust masks that are frozen before this pass. Then dL/dz follows while the tile is still there, and the recomputation
of the two-pass form (2NdV of 8NdV) is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from holdfast.errors import DataError
from holdfast.kernels.chunked import finish_block, join_rows
from holdfast.kernels.function import RowGradient
from holdfast.kernels.head import Head, HeadStats, Problem, make_problem, refuse_non_finite
from holdfast.kernels.naive import naive_stats
from holdfast.kernels.sums import sum_shards
from holdfast.kernels.tiles import Block, Tiling, Workspace, accumulate, widen
from holdfast.types import TokenStats

TokenLoss = Callable[[TokenStats, slice], Tensor]


def lm_head_loss(
    hidden: Float[Tensor, "N d"],
    head: Float[Tensor, "V d"] | Head,
    targets: Int[Tensor, " N"],
    token_loss: TokenLoss,
    *,
    temperature: float | Float[Tensor, "..."] = 1.0,
    rollout: tuple[Tensor, Tensor | Head] | Tensor | None = None,
    outputs: Collection[str] = ("entropy",),
    tiling: Tiling | None = None,
) -> tuple[Float[Tensor, ""], HeadStats]:
    """Σ_i token_loss(stats_i), differentiable in hidden, weight and bias, and the detached statistics: 6NdV in all.

    `token_loss(stats, rows)` gets the statistics of the rows in the slice `rows` and returns the loss of each [n];
    it is called block by block, and row i of what it returns must depend on row i alone. Gradients are ready when
    this returns and wait for one backward, so a weight gradient exists during the rest of the forward. The statistics
    are the same to the last bit as those of `lm_head_stats(..., implementation="chunked")`, which lists the other
    arguments and the errors. A weight of 16 bits costs a float32 copy of its gradient meanwhile. Raises DataError
    where `token_loss` returns another shape.
    """
    problem = make_problem(hidden, head, targets, temperature=temperature, rollout=rollout, outputs=outputs)
    leaves = (hidden, problem.head.weight, problem.head.bias)
    wanted = tuple(torch.is_grad_enabled() and x is not None and x.requires_grad for x in leaves)
    run = _Pass(token_loss, tiling or Tiling.default(hidden.device), wanted)  # pyright: ignore
    return _OnePass.apply(*leaves, problem, run)  # pyright: ignore


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, problem: Problem, run: _Pass) -> Any:
        loss, stats, ctx.gradients = run.all_rows(problem)
        ctx.shard = problem.head.shard
        ctx.dtypes = [hidden.dtype, weight.dtype, None if bias is None else bias.dtype]
        return loss, stats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Any) -> Any:  # pyright: ignore
        if ctx.gradients is None:
            raise RuntimeError("lm_head_loss keeps its gradients for one backward; call it again for another")
        # Scaled in place and let go of, so that the weight gradient exists once.
        gradients, ctx.gradients = [None if g is None else g.mul_(upstream) for g in ctx.gradients], None
        if gradients[0] is not None:
            sum_shards(gradients[0], ctx.shard)
        return *(None if g is None else g.to(t) for g, t in zip(gradients, ctx.dtypes, strict=True)), None, None


@dataclass(frozen=True)
class _Pass:
    """What stays the same from block to block; `wanted` says which of hidden, weight and bias get a gradient."""

    token_loss: TokenLoss
    tiling: Tiling
    wanted: tuple[bool, bool, bool]

    def all_rows(self, problem: Problem) -> tuple[Tensor, HeadStats, list[Tensor | None]]:
        """The loss, the statistics of every row and the gradients."""
        head, count = problem.head, problem.hidden.shape[0]
        dtype, leaves = head.compute_dtype, (problem.hidden, head.weight, head.bias)
        grads = [
            None if x is None or not wanted else torch.zeros_like(x, dtype=dtype)
            for x, wanted in zip(leaves, self.wanted, strict=True)
        ]
        space = Workspace(problem, self.tiling)
        columns = list(self.tiling.column_tiles(head.weight.shape[0]))
        tiles = [problem.hidden.new_empty((self.tiling.rows, c.stop - c.start), dtype=dtype) for c in columns]
        loss, parts, lse = problem.hidden.new_zeros((), dtype=dtype), [], []
        for rows in self.tiling.row_blocks(count):
            block = Block(problem, rows)
            sums = [
                block.sums(block.logits(c, out=z), c, space.tiles(c)[1:]) for c, z in zip(columns, tiles, strict=True)
            ]
            stats, totals = finish_block(block, sums, self.tiling, space)
            parts.append(stats)
            lse.append(totals.lse)
            share, upstream = self._differentiate(stats, slice(rows.start, min(rows.stop, count)))
            loss += share
            if any(self.wanted):
                gradient = RowGradient.of(totals, upstream[0], upstream[1], dtype)
                _collect(block, gradient, list(zip(columns, tiles, strict=True)), space, grads, rows.start)
        if not parts:
            return loss, naive_stats(replace(problem, head=replace(head, shard=None)))[0], grads
        refuse_non_finite(torch.cat(lse)[:count], problem)
        return loss, join_rows(parts, count), grads

    def _differentiate(self, stats: HeadStats, rows: slice) -> tuple[Tensor, list[Tensor | None]]:
        """The loss of one block and its gradient to the log-probabilities and entropies, filled up to the block."""
        count, height = rows.stop - rows.start, stats.logprobs.shape[0]
        stats = join_rows([stats], count)
        with torch.enable_grad():
            leaves = [None if x is None else x.detach().requires_grad_() for x in (stats.logprobs, stats.entropy)]
            losses = self.token_loss(replace(stats, logprobs=leaves[0], entropy=leaves[1]).token_stats(), rows)  # pyright: ignore
            if losses.shape != (count,):
                raise DataError(
                    f"token_loss returned {list(losses.shape)} for {count} rows: one loss per row is needed"
                )
            share = losses.sum()
        if not (any(self.wanted) and share.requires_grad):
            return share.detach(), [None, None]
        present = [x for x in leaves if x is not None]
        grads = list(torch.autograd.grad(share, present, allow_unused=True))
        filled = [None if g is None else functional.pad(g, (0, height - count)) for g in grads]
        return share.detach(), [*filled, None][:2]


def _collect(
    block: Block,
    gradient: RowGradient,
    tiles: list[tuple[slice, Tensor]],
    space: Workspace,
    grads: list[Tensor | None],
    start: int,
) -> None:
    """Add one block's share to the gradients, from the rows that have any."""
    live = gradient.live_rows()
    if live.numel() == 0:
        return
    whole = live.numel() == block.hidden.shape[0]
    part, gradient = (block, gradient) if whole else (block.select(live), gradient.take(live))
    hidden, weight, bias = grads
    total = torch.zeros_like(part.hidden, dtype=block.dtype)
    for columns, tile in tiles:
        logits = tile if whole else tile[live]
        _, dz, scratch = (x[: live.numel()] for x in space.tiles(columns)[:3])
        gradient.logit_gradient(part, logits, columns, dz, scratch)
        if hidden is not None:
            accumulate(total, dz, widen(block.problem.head.weight[columns], block.dtype))
        if weight is not None:
            accumulate(weight[columns], dz.T, part.hidden)
        if bias is not None:
            bias[columns] += dz.sum(dim=0)
    if hidden is not None:
        hidden[start + live] = total

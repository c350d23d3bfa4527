"""The head in torch alone, a tile of logits at a time, on any device.

Forward: one GEMM per tile (two with a rollout head) and row sums while the tile is in the cache. Backward: the tile
is made again, turned into dz in place and multiplied into dH and dW, which accumulate in the compute dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from holdfast.kernels.function import Gradients, RowGradient
from holdfast.kernels.head import HeadStats, Problem
from holdfast.kernels.sums import PEAK, PICKED, Totals, join, reduce_shards, statistics, sum_shards, tv_terms
from holdfast.kernels.tiles import Block, Tiling, Workspace, accumulate, fill_up, shape_gradient, widen


@dataclass(frozen=True)
class Chunked:
    """The torch implementation; `tiling` None takes the default of the device."""

    tiling: Tiling | None = None

    def forward(self, problem: Problem, keep_hidden_grad: bool) -> tuple[HeadStats, Totals, Tensor | None]:
        """The statistics of all rows, the sums behind them and, on request, d logprob / d hidden (a frozen head)."""
        count, tiling = problem.hidden.shape[0], self.tiling or Tiling.default(problem.hidden.device)
        space = Workspace(problem, tiling)
        blocks = [
            _forward_block(Block(problem, rows), tiling, space, keep_hidden_grad) for rows in tiling.row_blocks(count)
        ]
        sums = torch.cat([totals.sums for _, totals, _ in blocks], dim=1)[:, :count]
        lse = torch.cat([totals.lse for _, totals, _ in blocks])[:count]
        stats = join_rows([stats for stats, _, _ in blocks], count)
        kept = [grad for _, _, grad in blocks if grad is not None]
        return stats, Totals(sums, lse), torch.cat(kept)[:count] if kept else None

    def backward(self, problem: Problem, rows: RowGradient, wanted: tuple[bool, bool, bool]) -> Gradients:
        """dL/d(hidden, weight, bias) from the gradient of every row."""
        head, tiling = problem.head, self.tiling or Tiling.default(problem.hidden.device)
        count, dtype = problem.hidden.shape[0], head.compute_dtype
        space = Workspace(problem, tiling)
        # Only the forward promises the same bits alone and in a batch: the last block is cut, not filled up.
        parts = [slice(part.start, min(part.stop, count)) for part in tiling.row_blocks(count)]
        blocks = [(Block(problem, part), rows.take(part)) for part in parts]
        hidden = [torch.zeros_like(block.hidden, dtype=dtype) for block, _ in blocks] if wanted[0] else []
        weight = torch.empty_like(head.weight) if wanted[1] else None
        bias = torch.empty_like(head.bias) if wanted[2] and head.bias is not None else None
        for columns in tiling.column_tiles(head.weight.shape[0]):
            slab = widen(head.weight[columns], dtype)
            total = torch.zeros_like(slab, dtype=dtype)
            total_bias = torch.zeros_like(total[:, 0])
            for i, (block, row) in enumerate(blocks):
                logits, dz, scratch = (tile[: len(block.ids)] for tile in space.tiles(columns))
                block.logits(columns, logits)
                row.logit_gradient(block, logits, columns, dz, scratch)
                if wanted[0]:
                    accumulate(hidden[i], dz, slab)
                if wanted[1]:
                    accumulate(total, dz.T, block.hidden)
                if wanted[2]:
                    total_bias += dz.sum(dim=0)
            if weight is not None:
                weight[columns] = total
            if bias is not None:
                bias[columns] = total_bias
        return Gradients(torch.cat(hidden) if hidden else None, weight, bias)


def join_rows(parts: list[HeadStats], count: int) -> HeadStats:
    """The statistics of consecutive row blocks as one, cut to the rows that exist."""
    names = [name for name, value in vars(parts[0]).items() if value is not None]
    return HeadStats(**{name: torch.cat([getattr(part, name) for part in parts])[:count] for name in names})


def _forward_block(
    block: Block, tiling: Tiling, space: Workspace, keep_hidden_grad: bool
) -> tuple[HeadStats, Totals, Tensor | None]:
    problem = block.problem
    parts, kept = [], _KeptGradient(block) if keep_hidden_grad else None
    for columns in tiling.column_tiles(problem.head.weight.shape[0]):
        logits, *scratch = space.tiles(columns)
        block.logits(columns, logits)
        parts.append(block.sums(logits, columns, scratch))
        if kept is not None:
            kept.add(logits, scratch[1], parts[-1][PEAK].to(block.dtype), columns)
    stats, totals = finish_block(block, parts, tiling, space)
    return stats, totals, None if kept is None else kept.result(totals)


def finish_block(block: Block, parts: list[Tensor], tiling: Tiling, space: Workspace) -> tuple[HeadStats, Totals]:
    """The statistics of one block from the sums of its tiles."""
    outputs, shard = block.problem.outputs, block.problem.head.shard
    totals = reduce_shards(join(torch.stack(parts), outputs), shard, outputs)
    stats = statistics(totals, outputs, block.dtype)
    if "tv_rollout" in outputs:
        stats = replace(stats, tv_rollout=_tv(block, totals, tiling, space))
    return stats, totals


def add_tv(problem: Problem, totals: Totals, stats: HeadStats, tiling: Tiling) -> HeadStats:
    """The statistics with TV, where it is asked for: for implementations that have the sums only."""
    if "tv_rollout" not in problem.outputs:
        return stats
    count, space = problem.hidden.shape[0], Workspace(problem, tiling)
    parts = [
        _tv(Block(problem, rows), Totals(fill_up(totals.sums.T, rows).T, fill_up(totals.lse, rows)), tiling, space)
        for rows in tiling.row_blocks(count)
    ]
    return replace(stats, tv_rollout=torch.cat(parts)[:count])


def _tv(block: Block, totals: Totals, tiling: Tiling, space: Workspace) -> Tensor:
    """TV needs both log-sum-exps first: the tiles are made a second time."""
    head = block.problem.head
    tv = torch.zeros_like(totals.lse)
    for columns in tiling.column_tiles(head.weight.shape[0]):
        logits, *_, rollout_logits, _ = space.tiles(columns)
        tv += tv_terms(block.logits(columns, logits), block.rollout_logits(columns, rollout_logits), totals)
    return sum_shards(tv, head.shard).to(block.dtype)


class _KeptGradient:
    """d logprob / d hidden of one block, collected while its tiles pass: (1 - p_y)·W_y - Σ_{v≠y} p_v·W_v."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self._others = torch.zeros_like(block.hidden, dtype=block.dtype)
        self._peak = torch.full_like(self._others[:, 0], -torch.inf)

    def add(self, logits: Tensor, weights: Tensor, peak: Tensor, columns: slice) -> None:
        """One more tile; `weights` are its e^(z - peak) with 0 at the sampled token, and are overwritten."""
        head = self._block.problem.head
        highest = torch.maximum(self._peak, peak)
        self._others.mul_((self._peak - highest).exp_()[:, None])
        weights.mul_((peak - highest).exp_()[:, None])
        self._peak = highest
        shape_gradient(weights, logits, head, self._block.temperature)
        accumulate(self._others, weights, widen(head.weight[columns], self._block.dtype))

    def result(self, totals: Totals) -> Tensor:
        """The gradient, once the log-sum-exp is known."""
        block, head = self._block, self._block.problem.head
        picked = totals.sums[PICKED]
        own = widen(head.weight[block.ids[:, 0].clamp_min(0)], block.dtype)
        pull = shape_gradient(
            -torch.expm1(picked - totals.lse).to(block.dtype)[:, None],
            picked.to(block.dtype)[:, None],
            head,
            block.temperature,
        )
        return own * pull - self._others * (self._peak - totals.lse).exp().to(block.dtype)[:, None]

"""The head in Triton on CUDA; under Triton's interpreter (TRITON_INTERPRET=1) the same programs run on a CPU.

Forward: one fused program per row block and split of the vocabulary; no logit reaches memory. Backward: dL/dlogits of
a range of the vocabulary goes to a workspace in the dtype of the weight, and two library GEMMs turn it into dH and dW
with float32 accumulation. The split of the vocabulary does not depend on N, so a row alone and in a batch agree.
TV and the log-probabilities of gathered ids come from torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.kernels.blocks import Card, Sizes, sizes_for
from holdfast.kernels.chunked import add_tv
from holdfast.kernels.function import Gradients, RowGradient
from holdfast.kernels.head import Head, HeadStats, Problem
from holdfast.kernels.sums import (
    FIRST,
    MASS,
    PEAK,
    PICKED,
    SQUARE,
    SQUARE_FIRST,
    SQUARES,
    Totals,
    join,
    reduce_shards,
    statistics,
)
from holdfast.kernels.tiles import Tiling, accumulate, fill_up, product, shape_logits

FIELDS = PICKED + 1
# Rows whose sums are joined at a time, filled up: a fixed shape, as everywhere.
JOINED = 4096
# Elements of the weight rows that are gathered at a time.
GATHERED = 2**26


@dataclass(frozen=True)
class Triton:
    """The Triton implementation; `sizes` None takes the sizes that fit the device.

    Whatever its size, a tile is summed `sizes.rollout.columns` columns at a time and the vocabulary is split at the
    same tokens, so that the sums of a row are made in one order for all outputs. `workspace` is the size of the
    dL/dlogits buffer in elements.
    """

    sizes: Sizes | None = None
    workspace: int = 2**27

    def forward(self, problem: Problem, keep_hidden_grad: bool) -> tuple[HeadStats, Totals, Tensor | None]:
        """The statistics of all rows and the sums behind them; a frozen head takes the two-pass form here."""
        count, head = problem.hidden.shape[0], problem.head
        parts, span = self._sums(problem)
        totals = [
            reduce_shards(
                join(_complete(parts[..., rows], problem, rows, span), problem.outputs), head.shard, problem.outputs
            )
            for rows in Tiling(JOINED, 1).row_blocks(count)
        ]
        whole = Totals(torch.cat([t.sums for t in totals], 1)[:, :count], torch.cat([t.lse for t in totals])[:count])
        stats = statistics(whole, problem.outputs, head.compute_dtype)
        return add_tv(problem, whole, stats, Tiling.default(problem.hidden.device)), whole, None

    def backward(self, problem: Problem, rows: RowGradient, wanted: tuple[bool, bool, bool]) -> Gradients:
        """dL/d(hidden, weight, bias) from the gradient of every row, a range of the vocabulary at a time."""
        head, dtype = problem.head, problem.head.compute_dtype
        count, vocabulary = problem.hidden.shape[0], head.weight.shape[0]
        columns = self._sizes(problem)[0].gradient.columns
        width = min(max(self.workspace // count // columns, 1) * columns, -(-vocabulary // columns) * columns)
        space = torch.empty(count * width, dtype=head.weight.dtype, device=problem.hidden.device)
        hidden = torch.zeros_like(problem.hidden, dtype=dtype) if wanted[0] else None
        weight = torch.empty_like(head.weight) if wanted[1] else None
        bias = torch.empty_like(head.bias) if wanted[2] and head.bias is not None else None
        unit = _unit(rows, problem)
        rows = rows if unit is None else rows.times(unit)
        for start in range(0, vocabulary, width):
            part = slice(start, min(start + width, vocabulary))
            dz = space[: count * (part.stop - start)].view(count, part.stop - start)
            self._dlogits(problem, rows, part, dz)
            if hidden is not None:
                accumulate(hidden, dz, head.weight[part])
            if weight is not None:
                total = weight[part] if weight.dtype == dtype else torch.empty_like(weight[part], dtype=dtype)
                weight[part] = _over(product(dz.T, problem.hidden, total), unit)
            if bias is not None:
                bias[part] = _over(dz.sum(dim=0, dtype=dtype), unit)
        return Gradients(None if hidden is None else _over(hidden, unit), weight, bias)

    def _sizes(self, problem: Problem) -> tuple[Sizes, Card]:
        card = Card.of(problem.hidden.device)
        return self.sizes or sizes_for(card.shared_bytes, problem.head.weight.element_size()), card

    def _sums(self, problem: Problem) -> tuple[Tensor, int]:
        """The sums [splits, fields, rows filled up] and the number of tokens in one split."""
        from holdfast.kernels import triton_kernels

        head, count = problem.head, problem.hidden.shape[0]
        sizes, card = self._sizes(problem)
        blocks, piece = sizes.sums, sizes.rollout.columns
        if problem.rollout is not None:
            blocks = sizes.logits if isinstance(problem.rollout, Tensor) else sizes.rollout
        vocabulary = head.weight.shape[0]
        span = piece * _pieces_per_split(-(-vocabulary // piece))
        splits = -(-vocabulary // span)
        padded = -(-count // JOINED) * JOINED
        out = torch.zeros(splits, FIELDS, padded, device=problem.hidden.device)
        hidden, weight, bias, targets, temperature = _operands(problem, head, problem.hidden)
        r_hidden, r_weight, r_bias, r_logits, r_head, kind = hidden, weight, bias, hidden, head, 0
        if isinstance(problem.rollout, Tensor):
            r_logits, kind = problem.rollout.contiguous(), 2
        elif problem.rollout is not None:
            r_hidden, r_weight, r_bias, *_ = _operands(problem, problem.rollout[1], problem.rollout[0])
            r_head, kind = problem.rollout[1], 1
        grid = (-(-count // blocks.rows) * splits,)
        assert JOINED % blocks.rows == 0  # the last program writes whole blocks
        triton_kernels.sums_kernel[grid](  # pyright: ignore
            out, hidden, weight, bias, targets, temperature, r_hidden, r_weight, r_bias, r_logits,
            count, vocabulary, head.start, padded,
            head.scale, head.softcap or 1.0, r_head.scale, r_head.softcap or 1.0,
            HAS_BIAS=head.bias is not None, HAS_CAP=head.softcap is not None,
            HAS_TEMPERATURE=problem.temperature is not None, R_KIND=kind,
            R_HAS_BIAS=r_head.bias is not None, R_HAS_CAP=r_head.softcap is not None,
            SQUARES=bool(problem.outputs & SQUARES), FIELDS=FIELDS,
            WIDTH=hidden.shape[1], R_WIDTH=r_hidden.shape[1], TILES=span // blocks.columns,
            BAND=blocks.band(card.processors), HALVED=blocks.columns == 2 * piece,
            ROWS=blocks.rows, COLUMNS=blocks.columns, DEPTH=blocks.depth,
            num_warps=blocks.warps, num_stages=blocks.stages,
        )  # fmt: skip
        return out, span

    def _dlogits(self, problem: Problem, rows: RowGradient, part: slice, out: Tensor) -> None:
        from holdfast.kernels import triton_kernels

        sizes, card = self._sizes(problem)
        head, blocks = problem.head, sizes.gradient
        hidden, weight, bias, targets, temperature = _operands(problem, head, problem.hidden)
        slope = rows.level if rows.slope is None else rows.slope
        grid = (-(-out.shape[0] // blocks.rows) * -(-out.shape[1] // blocks.columns),)
        triton_kernels.dlogits_kernel[grid](  # pyright: ignore
            out, hidden, weight, bias, targets, temperature, rows.reference, rows.level, slope, rows.token,
            out.shape[0], head.weight.shape[0], head.start, part.start, out.shape[1],
            head.scale, head.softcap or 1.0,
            HAS_BIAS=head.bias is not None, HAS_CAP=head.softcap is not None,
            HAS_TEMPERATURE=problem.temperature is not None, HAS_SLOPE=rows.slope is not None,
            WIDTH=hidden.shape[1], BAND=blocks.band(card.processors),
            ROWS=blocks.rows, COLUMNS=blocks.columns, DEPTH=blocks.depth,
            num_warps=blocks.warps, num_stages=blocks.stages,
        )  # fmt: skip


def _pieces_per_split(pieces: int) -> int:
    """About 16, so that few sums reach memory, and even; the number that leaves the fewest empty in the last split."""
    return min(range(12, 21, 2), key=lambda per_split: (-pieces % per_split, abs(per_split - 16)))


def _unit(rows: RowGradient, problem: Problem) -> Tensor | None:
    """The power of two by which dL/dlogits is multiplied on its way through float16; None in other dtypes.

    float16 ends at 6e-8, where the gradients of a mean over many tokens begin. |p·(level + slope·(log p))| is at most
    |level| + |slope| (|x e^x| < 1 for x < 0), so the largest one lies near 1024 and those down to 1e-10 of it survive.
    """
    if problem.head.weight.dtype != torch.float16:
        return None
    level = rows.level.abs() if rows.slope is None else rows.level.abs() + rows.slope.abs()
    largest = torch.maximum(level, rows.token.abs())
    largest = (largest if problem.temperature is None else largest / problem.temperature).max() * abs(
        problem.head.scale
    )
    return torch.exp2(10 - largest.clamp(1e-30, 1e30).log2().ceil())


def _over(x: Tensor, unit: Tensor | None) -> Tensor:
    return x if unit is None else x.div_(unit)


def _operands(problem: Problem, head: Head, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What a program reads, contiguous; a tensor that is not there is stood in for by one that is never read."""
    hidden, weight = hidden.contiguous(), head.weight.contiguous()
    bias = weight if head.bias is None else head.bias.contiguous()
    temperature = hidden if problem.temperature is None else problem.temperature.contiguous()
    return hidden, weight, bias, problem.ids[:, 0].contiguous(), temperature


def _complete(parts: Tensor, problem: Problem, rows: slice, span: int) -> Tensor:
    """The sums of some rows in float64, with what the programs left out: the sampled token and the gathered ids.

    `span` is the number of tokens in one split.
    """
    ids = fill_up(problem.ids, rows, value=-1)
    sums = parts.new_zeros((parts.shape[0], PICKED + ids.shape[1], parts.shape[2]), dtype=torch.float64)
    sums[:, : PICKED + 1] = parts
    splits = torch.arange(parts.shape[0], device=ids.device)[:, None]
    held = torch.div(ids[:, 0] - problem.head.start, span, rounding_mode="floor") == splits
    shift = torch.where(held, sums[:, PICKED] - sums[:, PEAK], 0)
    own = torch.where(held, shift.exp(), 0)
    sums[:, MASS] += own
    sums[:, FIRST] += own * shift
    sums[:, SQUARE] += own**2
    sums[:, SQUARE_FIRST] += own**2 * shift
    if ids.shape[1] > 1:
        sums[0, PICKED + 1 :] = _gathered_logits(problem, rows).T
    return sums


def _gathered_logits(problem: Problem, rows: slice) -> Tensor:
    """Logits at the ids to gather, row by row against the rows of the weight; 0 where another shard holds the id."""
    head, dtype = problem.head, problem.head.compute_dtype
    hidden, ids = fill_up(problem.hidden, rows).to(dtype), fill_up(problem.ids, rows)[:, 1:] - problem.head.start
    inside = (ids >= 0) & (ids < head.weight.shape[0])
    ids = ids.clamp(0, head.weight.shape[0] - 1)
    step = max(1, GATHERED // (ids.shape[1] * hidden.shape[1]))
    pairs = zip(hidden.split(step), ids.split(step), strict=True)
    logits = torch.cat([torch.einsum("nd,nkd->nk", h, head.weight[i].to(dtype)) for h, i in pairs])
    bias = None if head.bias is None else head.bias[ids]
    temperature = None if problem.temperature is None else fill_up(problem.temperature, rows, 1)
    return torch.where(inside, shape_logits(logits, head, bias, temperature), 0)

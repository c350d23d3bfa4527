"""One tile of logits, forward and backward: the arithmetic that the torch implementations share.

Tiles have the same shape in every call, whatever N is: the last row block is filled up with zeros. A row therefore
meets the same instructions alone and in a batch, in the pass for the old log-probabilities and in the training pass,
and its log-probability is the same to the last bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn import functional

from holdfast.kernels.head import Head, Problem
from holdfast.kernels.sums import slice_sums


@dataclass(frozen=True)
class Tiling:
    """Rows and columns of one tile. On a CPU three tiles should fit the second-level cache of a core."""

    rows: int
    columns: int

    @staticmethod
    def default(device: torch.device) -> Tiling:
        """256 x 1024 (1 MiB of float32) on a CPU; on an accelerator large enough to fill it."""
        return Tiling(256, 1024) if device.type == "cpu" else Tiling(4096, 8192)

    def row_blocks(self, count: int) -> Iterator[slice]:
        """Slices of `rows` rows; the last one reaches beyond `count` where it must."""
        return (slice(start, start + self.rows) for start in range(0, count, self.rows))

    def column_tiles(self, count: int) -> Iterator[slice]:
        """Slices of `columns` columns; the last one is shorter where it must."""
        return (slice(start, min(start + self.columns, count)) for start in range(0, count, self.columns))


def fill_up(x: Tensor, rows: slice, value: float | int = 0) -> Tensor:
    """These rows of x, with rows of `value` where the slice reaches beyond its end."""
    part = x[rows]
    missing = rows.stop - rows.start - part.shape[0]
    return functional.pad(part, (0, 0) * (x.ndim - 1) + (0, missing), value=value) if missing else part


def widen(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as a GEMM wants it: a CPU multiplies in the compute dtype; an accelerator takes 16 bits and widens itself."""
    return x.to(dtype) if x.device.type == "cpu" else x


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a @ b in the dtype of `out`, accumulated and kept there: 16-bit factors never round the result."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    if a.device.type == "cpu":
        return torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)
    return torch.mm(a, b, out_dtype=out.dtype, out=out)


def accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b in the dtype of `total`, in place; `a` is rounded to the dtype of `b`.

    float16 ends at 6e-8: a wider `a` is scaled by a power of two, so that small gradients are not rounded to 0.
    """
    if a.dtype == total.dtype and b.dtype == torch.float16:
        unit = torch.exp2(10 - a.abs().amax().clamp(1e-30, 1e30).log2().ceil())
        total.add_(product((a * unit).to(b.dtype), b, torch.empty_like(total)).div_(unit))
        return
    a = a.to(b.dtype)
    if b.dtype == total.dtype:
        total.addmm_(a, b)
    elif total.device.type == "cpu":
        total.addmm_(a.to(total.dtype), b.to(total.dtype))
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)


def shape_logits(logits: Tensor, head: Head, bias: Tensor | None, temperature: Tensor | None) -> Tensor:
    """In place: cap·tanh(scale·(logits + bias) / cap) / temperature."""
    if bias is not None:
        logits.add_(bias)
    if head.scale != 1.0:
        logits.mul_(head.scale)
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_().mul_(head.softcap)
    if temperature is not None:
        logits.div_(temperature[:, None])
    return logits


def shape_gradient(gradient: Tensor, logits: Tensor, head: Head, temperature: Tensor | None) -> Tensor:
    """In place: from dL/dz of the shaped logits to dL/d(h·Wᵀ + b); `logits` are the shaped ones."""
    if temperature is not None:
        gradient.div_(temperature[:, None])
    if head.softcap is not None:
        capped = logits if temperature is None else logits * temperature[:, None]
        gradient.mul_(1 - (capped / head.softcap).square_())
    if head.scale != 1.0:
        gradient.mul_(head.scale)
    return gradient


class Block:
    """Some rows of a problem, filled up to a whole tile: makes their logits and sums tile by tile."""

    def __init__(self, problem: Problem, rows: slice) -> None:
        self.problem = problem
        self.dtype = problem.head.compute_dtype
        self.hidden = widen(fill_up(problem.hidden, rows), self.dtype)
        self.ids = fill_up(problem.ids, rows, value=-1)
        self.temperature = None if problem.temperature is None else fill_up(problem.temperature, rows, value=1)
        self.rollout = problem.rollout
        if isinstance(self.rollout, Tensor):
            self.rollout = fill_up(self.rollout, rows)
        elif self.rollout is not None:
            hidden, head = self.rollout
            self.rollout = widen(fill_up(hidden, rows), self.dtype), head

    def select(self, rows: Tensor) -> Block:
        """These rows of the block, for its backward."""
        part = copy.copy(self)
        part.hidden, part.ids = self.hidden[rows], self.ids[rows]
        part.temperature = None if self.temperature is None else self.temperature[rows]
        return part

    def logits(self, columns: slice, out: Tensor) -> Tensor:
        """The shaped logits of one tile, written to `out`."""
        return self._logits(self.hidden, self.problem.head, columns, out)

    def rollout_logits(self, columns: slice, out: Tensor) -> Tensor:
        """The rollout policy's logits of one tile, written to `out`; for problems that have such a policy."""
        assert self.rollout is not None
        if isinstance(self.rollout, Tensor):
            return out.copy_(self.rollout[:, columns])
        hidden, head = self.rollout
        return self._logits(hidden, head, columns, out)

    def sums(self, logits: Tensor, columns: slice, scratch: list[Tensor]) -> Float64[Tensor, "F R"]:
        """The sums of one tile of logits."""
        places = self.ids - (self.problem.head.start + columns.start)
        inside = (places >= 0) & (places < logits.shape[1])
        places = places.clamp(0, logits.shape[1] - 1)
        if self.rollout is not None:
            self.rollout_logits(columns, scratch[2])
        return slice_sums(logits, (places, inside), self.problem.outputs, scratch)

    def _logits(self, hidden: Tensor, head: Head, columns: slice, out: Tensor) -> Tensor:
        product(hidden, widen(head.weight[columns], self.dtype).T, out)
        bias = None if head.bias is None else head.bias[columns]
        return shape_logits(out, head, bias, self.temperature)


class Workspace:
    """Tiles that one call reuses, first touched once and then warm: three, and two more for a rollout policy."""

    def __init__(self, problem: Problem, tiling: Tiling) -> None:
        size = tiling.rows * min(tiling.columns, problem.head.weight.shape[0])
        empty = partial(problem.hidden.new_empty, size, dtype=problem.head.compute_dtype)
        self._flat = [empty() for _ in range(3 if problem.rollout is None else 5)]
        self._rows = tiling.rows

    def tiles(self, columns: slice) -> list[Tensor]:
        """The tiles, cut to the width of these columns and still contiguous."""
        width = columns.stop - columns.start
        return [flat[: self._rows * width].view(self._rows, width) for flat in self._flat]

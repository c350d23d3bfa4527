"""The two-pass gradient: any objective sits between a forward that keeps [N] numbers and a backward that remakes tiles.

With p = softmax(z), H the entropy, g_l = dL/dlogprob and g_H = dL/dentropy of a row whose token is y:

    dL/dz_v = p_v·(-g_l - g_H·(log p_v + H)) for v ≠ y,    dL/dz_y = -g_l·(p_y - 1) - g_H·p_y·(log p_y + H)

p_y - 1 is expm1(log p_y): confident tokens keep their gradient, and the row sums to 0. Rows with g_l = g_H = 0
(prompt, padding, sequences that a trust region rejected) are left out of the backward altogether, which is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from holdfast.kernels.head import Head, HeadStats, Problem
from holdfast.kernels.sums import FIRST, MASS, PICKED, Totals, sum_shards
from holdfast.kernels.tiles import Block, shape_gradient


class Gradients(NamedTuple):
    """dL/d(hidden, weight, bias); None where it was not asked for."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True)
class RowGradient:
    """What turns a tile of logits into dL/dz, per row: p·(level + slope·(z - reference)), and at the token `token`.

    `reference` is lse in the compute dtype; level and slope carry e^(reference - lse), so that its rounding (up to
    2e-6 at |lse| = 45) does not scale p. `slope` is None where the entropy has no gradient.
    """

    reference: Float[Tensor, " N"]
    level: Float[Tensor, " N"]
    slope: Float[Tensor, " N"] | None
    token: Float[Tensor, " N"]

    @staticmethod
    def of(totals: Totals, logprob_grad: Tensor | None, entropy_grad: Tensor | None, dtype: torch.dtype) -> RowGradient:
        """From the upstream gradients and the sums of the forward pass."""
        lse, logprob = totals.lse, totals.sums[PICKED] - totals.lse
        reference = lse.to(dtype)
        repair = (reference.double() - lse).exp()
        g = torch.zeros_like(lse) if logprob_grad is None else logprob_grad.double()
        level, token, slope = -g, -g * torch.expm1(logprob), None
        if entropy_grad is not None:
            g_entropy = entropy_grad.double()
            entropy = totals.sums[MASS].log() - totals.sums[FIRST] / totals.sums[MASS]
            level = level - g_entropy * (entropy + reference.double() - lse)
            token = token - g_entropy * logprob.exp() * (logprob + entropy)
            slope = (-g_entropy * repair).to(dtype)
        return RowGradient(reference, (level * repair).to(dtype), slope, token.to(dtype))

    def live_rows(self) -> Tensor:
        """Indices of the rows that have a gradient."""
        live = (self.level != 0) | (self.token != 0)
        return (live if self.slope is None else live | (self.slope != 0)).nonzero().flatten()

    def take(self, rows: Tensor | slice) -> RowGradient:
        """Only these rows."""
        slope = None if self.slope is None else self.slope[rows]
        return RowGradient(self.reference[rows], self.level[rows], slope, self.token[rows])

    def times(self, factor: Tensor) -> RowGradient:
        """The gradient of `factor` times the loss."""
        slope = None if self.slope is None else self.slope * factor
        return RowGradient(self.reference, self.level * factor, slope, self.token * factor)

    def logit_gradient(self, block: Block, logits: Tensor, columns: slice, out: Tensor, scratch: Tensor) -> None:
        """dL/d(h·Wᵀ + b) of one tile, written to `out`."""
        torch.sub(logits, self.reference[:, None], out=out)
        if self.slope is None:
            out.exp_().mul_(self.level[:, None])
        else:
            torch.exp(out, out=scratch)
            out.mul_(self.slope[:, None]).add_(self.level[:, None]).mul_(scratch)
        place = block.ids[:, :1] - (block.problem.head.start + columns.start)
        inside = (place >= 0) & (place < out.shape[1])
        place = place.clamp(0, out.shape[1] - 1)
        out.scatter_(1, place, torch.where(inside, self.token[:, None], out.gather(1, place)))
        shape_gradient(out, logits, block.problem.head, block.temperature)


@runtime_checkable
class Implementation(Protocol):
    """What `chunked` and `triton` provide."""

    def forward(self, problem: Problem, keep_hidden_grad: bool) -> tuple[HeadStats, Totals, Tensor | None]:
        """Statistics, the joined sums behind them, and d logprob / d hidden where it is to be kept."""
        ...

    def backward(self, problem: Problem, rows: RowGradient, wanted: tuple[bool, bool, bool]) -> Gradients:
        """dL/d(hidden, weight, bias) from the gradient of every row."""
        ...


class _TwoPass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Any, weight: Any, bias: Any, problem: Problem, how: Implementation, keep: bool
    ) -> Any:
        stats, totals, kept = how.forward(problem, keep)
        ctx.set_materialize_grads(False)
        ctx.how = how
        ctx.form = (problem.head.scale, problem.head.softcap, problem.head.shard)
        per_row = (problem.temperature, problem.ids[:, 0], totals.sums, totals.lse)
        ctx.save_for_backward(hidden, weight, bias, kept, *per_row)
        return stats.logprobs, stats.entropy, totals.lse, replace(stats, entropy=None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, logprob_grad: Any, entropy_grad: Any, *_: Any) -> Any:  # pyright: ignore
        hidden, weight, bias, kept, *per_row = ctx.saved_tensors
        if kept is not None and entropy_grad is None:
            return (logprob_grad[:, None] * kept).to(hidden.dtype), *(None,) * 5
        rows = _live_rows(logprob_grad, entropy_grad)
        if rows is not None and rows.numel() == 0:
            zeros = (
                torch.zeros_like(x) if wanted else None
                for x, wanted in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
            )
            return *zeros, None, None, None
        per_row = (*per_row, logprob_grad, entropy_grad)
        kept_rows: list[Any] = [x if x is None or rows is None else x[..., rows] for x in per_row]
        temperature, targets, sums, lse, *upstream = kept_rows
        live = hidden if rows is None else hidden[rows]
        problem = Problem(live, Head(weight, bias, *ctx.form), targets[:, None], temperature, None, frozenset())
        gradient = RowGradient.of(Totals(sums, lse), upstream[0], upstream[1], problem.head.compute_dtype)
        found = ctx.how.backward(problem, gradient, ctx.needs_input_grad[:3])
        return _finish(found.hidden, hidden, rows, problem.head), found.weight, found.bias, None, None, None


def two_pass(problem: Problem, how: Implementation) -> tuple[HeadStats, Tensor]:
    """Statistics of every row, differentiable in logprobs and entropy, and the detached log-sum-exps.

    Where only the hidden states need a gradient (a frozen head under LoRA), d logprob / d hidden = W_y - E_p[W] is
    kept from the forward and the backward is a multiplication: 4NdV instead of 6NdV. An entropy gradient still
    arrives correctly, by the second pass.
    """
    head = problem.head
    trains_head = head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad)
    keep = torch.is_grad_enabled() and problem.hidden.requires_grad and not trains_head and head.shard is None
    logprobs, entropy, lse, stats = _TwoPass.apply(problem.hidden, head.weight, head.bias, problem, how, keep)
    return replace(stats, logprobs=logprobs, entropy=entropy), lse.detach()


def _live_rows(logprob_grad: Tensor | None, entropy_grad: Tensor | None) -> Tensor | None:
    """Indices of the rows that have a gradient; None where all have."""
    grads = [g for g in (logprob_grad, entropy_grad) if g is not None]
    if not grads:
        return torch.zeros(0, dtype=torch.int64)
    live = torch.stack([g != 0 for g in grads]).any(dim=0)
    return None if bool(live.all()) else live.nonzero().flatten()


def _finish(grad: Tensor | None, hidden: Tensor, rows: Tensor | None, head: Head) -> Tensor | None:
    """Sum dL/dhidden over the ranks of a vocabulary-parallel head and put it back to the rows it belongs to."""
    if grad is None:
        return None
    grad = sum_shards(grad, head.shard).to(hidden.dtype)
    return grad if rows is None else torch.zeros_like(hidden).index_copy_(0, rows, grad)

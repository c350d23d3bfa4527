"""The head with all logits in memory: the oracle in float64, and the fastest way where the vocabulary is small.

logits z = Head(h) [N, V],  logprob = z_y - lse,  H = -Σ p log p,  KL(rollout‖current) = Σ p_r (log p_r - log p)
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from holdfast.kernels.head import ROLLOUT_OUTPUTS, Head, HeadStats, Problem

ROWS = 1024


def naive_stats(problem: Problem) -> tuple[HeadStats, Float[Tensor, " N"]]:
    """Statistics of every row, differentiable by plain autograd, and the detached log-sum-exps."""
    logits = _logits(problem.hidden, problem.head, problem.temperature)
    logp = torch.log_softmax(logits, dim=1)
    picked = logp.gather(1, problem.ids)
    values: dict[str, Tensor] = {"logprobs": picked[:, 0]}
    if "entropy" in problem.outputs:
        values["entropy"] = -(logp.exp() * logp).sum(dim=1)
    with torch.no_grad():
        values |= _detached(problem, logits, logp, picked)
        lse = (logits[:, :1] - logp[:, :1]).flatten().detach()
    return HeadStats(**values), lse


def _detached(problem: Problem, logits: Tensor, logp: Tensor, picked: Tensor) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    if picked.shape[1] > 1:
        values["gathered_logprobs"] = picked[:, 1:].detach()
    p = logp.exp()
    if "sum_p2" in problem.outputs:
        values["sum_p2"] = (p * p).sum(dim=1)
    if "entropy_change" in problem.outputs:
        toward_entropy = -p * (logp - (p * logp).sum(dim=1, keepdim=True))
        at_token = toward_entropy.gather(1, problem.ids[:, :1])[:, 0]
        values["entropy_change"] = at_token - (toward_entropy * p).sum(dim=1)
    if problem.rollout is not None:
        # In float64 nothing of a KL of 1e-9 is lost to cancellation; at this size that costs little.
        rows = _rollout_values(torch.log_softmax(logits.double(), dim=1), _rollout_logp(problem))
        values |= {name: rows[name].to(logp.dtype) for name in ROLLOUT_OUTPUTS & problem.outputs}
    return values


def _rollout_values(logp: Tensor, rollout_logp: Tensor) -> dict[str, Tensor]:
    p, r = logp.exp(), rollout_logp.exp()
    kept = r > 0
    gap = torch.where(kept, rollout_logp - logp, 0)
    chi2 = torch.where(kept, r * torch.expm1(-gap) ** 2, torch.where(p > 0, torch.inf, 0))
    return {
        "kl_rollout": (r * gap).sum(dim=1).clamp_min(0),
        "tv_rollout": (p - r).abs().sum(dim=1) / 2,
        "chi2_rollout": chi2.sum(dim=1),
    }


def _rollout_logp(problem: Problem) -> Tensor:
    if isinstance(problem.rollout, Tensor):
        return torch.log_softmax(problem.rollout.double(), dim=1)
    hidden, head = problem.rollout  # pyright: ignore[reportGeneralTypeIssues]
    return torch.log_softmax(_logits(hidden, head, problem.temperature).double(), dim=1)


class _FixedProduct(torch.autograd.Function):
    """h·Wᵀ by GEMMs of one shape whatever N is, so that a row alone and in a batch meets the same instructions."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        out = hidden.new_empty(hidden.shape[0], weight.shape[0])
        for start in range(0, hidden.shape[0], ROWS):
            part = hidden[start : start + ROWS]
            filled = functional.pad(part, (0, 0, 0, ROWS - part.shape[0])) if part.shape[0] < ROWS else part
            out[start : start + ROWS] = (filled @ weight.T)[: part.shape[0]]
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyright: ignore
        hidden, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return gradient @ weight if wanted[0] else None, gradient.T @ hidden if wanted[1] else None


def _logits(hidden: Tensor, head: Head, temperature: Tensor | None) -> Tensor:
    dtype = head.compute_dtype
    logits = _FixedProduct.apply(hidden.to(dtype), head.weight.to(dtype))
    if head.bias is not None:
        logits = logits + head.bias.to(dtype)
    if head.scale != 1.0:
        logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits if temperature is None else logits / temperature[:, None]

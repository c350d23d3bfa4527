"""The head's front door: checks a call, chooses an implementation, says why.

The choice depends on the head and the device, never on the number of rows or on what is asked for: the pass for the
old log-probabilities and the training pass run the same instructions, and on-policy ratios are exactly 1.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.errors import ConfigError, nearest
from holdfast.kernels.chunked import Chunked
from holdfast.kernels.fallback import Guarded, warn_once
from holdfast.kernels.function import Implementation, two_pass
from holdfast.kernels.head import Head, HeadStats, Problem, make_problem, refuse_non_finite
from holdfast.kernels.naive import naive_stats

Name = Literal["auto", "naive", "chunked", "triton"]
# Up to here all logits at once are no larger than the hidden states, and the overhead per tile would weigh more
# than the memory: measured on a CPU, naive is faster at 32 and chunked from 512 on.
SMALL_VOCABULARY = 256


@dataclass(frozen=True)
class Choice:
    """An implementation and the reason for it."""

    name: Literal["naive", "chunked", "triton"]
    reason: str


def choose(head: Head, implementation: str = "auto") -> Choice:
    """Which implementation a head gets, and why.

    Raises ConfigError for an unknown name and for naive on a vocabulary-parallel head.
    """
    names = ("auto", "naive", "chunked", "triton")
    if implementation not in names:
        raise ConfigError(f"unknown implementation {implementation!r}: {nearest(implementation, names)}")
    if implementation == "naive" and head.shard is not None:
        raise ConfigError("naive does not take a vocabulary-parallel head; use auto, chunked or triton")
    if implementation in ("naive", "chunked"):
        return Choice(implementation, "asked for")  # pyright: ignore[reportArgumentType]
    device, dtype = head.weight.device, head.weight.dtype
    obstacle = triton_obstacle(device, head.compute_dtype)
    obstacle = _triton(device, dtype).failure if obstacle is None else obstacle
    if implementation == "triton":
        if obstacle is None:
            return Choice("triton", "asked for")
        warn_once(f"Triton cannot run here ({obstacle}); the chunked torch implementation takes over")
        return Choice("chunked", obstacle)
    if head.shard is None and head.weight.shape[0] <= SMALL_VOCABULARY:
        return Choice("naive", f"a vocabulary of at most {SMALL_VOCABULARY}: all logits at once are small and fastest")
    if device.type == "cuda" and dtype == torch.float32:
        return Choice("chunked", "float32, which library GEMMs multiply faster than Triton")
    if device.type == "cuda" and obstacle is None:
        return Choice("triton", "a CUDA device and Triton")
    if device.type == "cuda":
        warn_once(f"The head runs in chunked torch on this CUDA device: {obstacle}")
    return Choice("chunked", obstacle or "not a CUDA device: tiles in torch")


def triton_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the Triton implementation cannot run, or None where it can (CUDA, or Triton's interpreter)."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"{device.type} is not a CUDA device"
    return "float64 runs in torch" if dtype == torch.float64 else None


def lm_head_stats(
    hidden: Float[Tensor, "N d"],
    head: Float[Tensor, "V d"] | Head,
    targets: Int[Tensor, " N"],
    *,
    temperature: float | Float[Tensor, "..."] = 1.0,
    rollout: tuple[Tensor, Tensor | Head] | Tensor | None = None,
    outputs: Collection[str] = ("entropy",),
    gather_ids: Int[Tensor, "N K"] | None = None,
    implementation: Name | Chunked = "auto",
) -> HeadStats:
    """Log-probability, entropy and exact divergences of N tokens from hidden states, without an [N, V] tensor.

    With z = cap·tanh(scale·(h·Wᵀ + b) / cap) / temperature:  logprob = z_y - lse(z),  H = lse - E_p[z],
    KL(rollout‖current) = Σ p_r (log p_r - log p),  TV = ½ Σ |p - p_r|,  χ² = E_r[(p/p_r - 1)²], in nats.

    `head` is the weight or a `Head` with bias, scale, soft-cap and shard. `temperature` is one number or one per row.
    `rollout` is the policy that sampled: (its hidden states, its weight or Head), or its final logits [N, V], which
    may be -inf outside the support it sampled from. `outputs` names fields of `HeadStats`; the log-probabilities are
    always there. `logprobs` and `entropy` carry gradients to hidden, weight and bias, the rest is detached.
    `gather_ids` adds the log-probabilities of other tokens: with the engine's top-K,
    `holdfast.core.divergences.top_k` makes two-sided bounds of them. `implementation` may be a `Chunked` with
    a tiling of its own.

    Cost, in units of the GEMM NdV: 2 forward and 6 backward (times the share of rows with a gradient), +2 for KL and
    χ² from hidden states, +4 for TV; a frozen head 4 in all. χ² is +inf where the rollout policy's support misses
    tokens of the current one.

    Raises DataError for tensors that do not fit, targets outside the vocabulary and non-finite logits (rows named);
    ConfigError for settings out of range.
    """
    settings = {"temperature": temperature, "rollout": rollout, "outputs": outputs, "gather_ids": gather_ids}
    problem = make_problem(hidden, head, targets, **settings)
    if isinstance(implementation, Chunked):
        stats, lse = _run(problem, implementation)
    else:
        name = choose(problem.head, implementation).name
        stats, lse = naive_stats(problem) if name == "naive" else _run(problem, _implementation(name, problem.head))
    refuse_non_finite(lse, problem)
    return stats


def _run(problem: Problem, how: Implementation) -> tuple[HeadStats, Tensor]:
    # Without rows there is nothing to tile; the naive form keeps the graph and the shapes.
    whole = replace(problem.head, shard=None)
    return two_pass(problem, how) if problem.hidden.shape[0] else naive_stats(replace(problem, head=whole))


def _implementation(name: str, head: Head) -> Implementation:
    return Chunked() if name == "chunked" else _triton(head.weight.device, head.weight.dtype)


@functools.cache
def _triton(device: torch.device, dtype: torch.dtype) -> Guarded:
    """Triton with torch behind it, one for a device and dtype: what cannot be built is not tried again."""
    from holdfast.kernels.triton import Triton

    return Guarded(Triton())

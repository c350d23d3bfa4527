"""The policy term: its value, and its gradient in closed form.

Every objective of the table amounts to one number per token, the factor c_t on n M w A ∇log π_t. Writing it down,
instead of leaving it to automatic differentiation, makes it a metric, and keeps nothing for the backward pass but
itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.core.ratios import LOG_RATIO_LIMIT, pool
from holdfast.objectives.parts.gates import Gate
from holdfast.objectives.parts.reduce import Pool
from holdfast.objectives.parts.terms import Policy, Terms


@dataclass(frozen=True)
class Gated:
    """Ratios after gate and pool: `value` is φ/A, `coefficient` the factor c_t, `clipped` what the gate limits.

    `slope` is kept where a token's share of its sequence's gradient depends on it: after a gate inside the pool.
    """

    value: Float[Tensor, "B _"]
    coefficient: Float[Tensor, "B _"]
    clipped: Bool[Tensor, "..."]
    inside: Bool[Tensor, "B T"]
    slope: Float[Tensor, "B _"] | None


def gated(terms: Terms, gate: Gate, how: Pool, carrier: str, denominator: Policy) -> Gated:
    """Pool and gate the log-ratio in the order of `how`, with the slope that the gradient sees.

    c = f(r) e(r) through the ratio, f(r) through the score. A ratio at the clamp of ±20 no longer moves: c = 0 there.
    """
    log_ratio = terms.log_ratio(denominator)
    inside = log_ratio.abs() < LOG_RATIO_LIMIT
    before = how.over != "token" and how.order == "before"
    after = how.over != "token" and how.order == "after"
    if before:
        log_ratio = _pooled(log_ratio, terms, how)
    log_value, slope, clipped = gate.evaluate(log_ratio, terms.positive)
    if after:
        log_value = _pooled(log_value, terms, how)
    value = log_value.exp()
    if carrier == "score":
        return Gated(value, value, clipped, inside, None)
    moving = log_ratio.abs() < LOG_RATIO_LIMIT if before else inside
    return Gated(value, torch.where(moving, value * slope, 0), clipped, inside, slope if after else None)


def policy_loss(
    terms: Terms, ratios: Gated, how: Pool, carrier: str, weights: Float[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """Σ weights · φ/A with its gradient in the current log-probabilities; `weights` is −n M w A, zero wherever M is.

    The adjoint of a pool is the pool itself: what a sequence's ratio receives goes to its tokens as it came from them.
    """
    value = weights * ratios.value
    loss = (value * terms.logprobs).sum() if carrier == "score" else value.sum()
    if carrier == "score" or how.over == "token" or how.gradient == "token":
        gradient = weights * ratios.coefficient
    elif how.order == "before":
        gradient = pool(weights * ratios.coefficient, terms.mask, how.over, terms.batch.turn_ids)
        gradient = torch.where(terms.mask & ratios.inside, gradient, 0)
    else:
        assert ratios.slope is not None
        gradient = pool(value, terms.mask, how.over, terms.batch.turn_ids) * ratios.slope
        gradient = torch.where(terms.mask & ratios.inside, gradient, 0)
    return _WithGradient.apply(terms.stats.logprobs, loss, gradient)  # pyright: ignore[reportReturnType]


def _pooled(values: Tensor, terms: Terms, how: Pool) -> Tensor:
    pooled = pool(values, terms.mask, how.over, terms.batch.turn_ids)
    return pooled.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


class _WithGradient(torch.autograd.Function):
    """A known scalar whose gradient in the first input is known too."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = inputs.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[0]).to(ctx.dtype), None, None

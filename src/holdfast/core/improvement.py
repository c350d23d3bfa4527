"""One number per rollout whose mean is at most the true gain J(θ) - J(p): what a certificate takes the limit of.

Rewards lie in [0, 1]. No exponential of a token's ratio enters unbounded, so that the tails are light, and nothing
has to be assumed about contexts or tokens that were not sampled. Proofs: docs/theory/certificates.md, [16] to [18].
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.core.bounds_measured import SampledDrift, Sequences, bad_contexts, before_first
from holdfast.core.divergences import expm1_minus
from holdfast.core.ratios import masked
from holdfast.errors import ConfigError, DataError

BASELINE = 0.5
"""b in `compensated_gain`: any constant keeps its mean; ½ makes the worst case over rewards smallest."""


def compensated_gain(measured: SampledDrift, reward: Float[Tensor, " B"], threshold: float | None = None) -> Sequences:
    """X = (R - ½)(log W + K) - R (K - k3(W))⁺, K = Σ KL(c_t), W = Π ρ_t: E_p X ≤ J(θ) - J(p). [16]

    Since J(θ) - J(p) = E[R (log W + k3(W))] and E[log W + K] = 0. It is the surrogate's gain less the `compensated`
    bound [15] on its error, both with the constant baseline ½, in one variable. Mass that p never shows lowers it: K
    holds that mass at every context.

    With `threshold` (nats) any drift is allowed after the first context with KL(c) > threshold. Such a rollout counts
    as worth nothing under θ, and W and K end before that context: with hit = 1 where there is one,
    X = (R (1 - hit) - ½)(log W + K) - R (1 - hit)(K - k3(W))⁺ - R hit. [17]

    Raises DataError without exact KL at the sampled contexts.
    """
    if measured.kl is None:
        raise DataError("kl_rollout was not measured: this variable needs exact KL at every sampled context")
    log_ratio, kl, kept = measured.log_ratio, measured.kl, reward
    if threshold is not None:
        bad = bad_contexts(measured, threshold)
        before = before_first(bad)
        log_ratio, kl = masked(log_ratio, before), masked(kl, before)
        kept = torch.where(bad.any(-1), torch.zeros_like(reward), reward)
    log_weight, sum_kl = log_ratio.sum(-1), kl.sum(-1)
    shortfall = (sum_kl - expm1_minus(log_weight)).clamp(min=0)
    return (kept - BASELINE) * (log_weight + sum_kl) - kept * shortfall - (reward - kept)


def clipped_gain(
    log_ratio: Float[Tensor, "B T"], reward: Float[Tensor, " B"], cap: float = 10.0
) -> Float[Tensor, " B"]:
    """X' = R (min(W, cap) - 1) in [-1, cap - 1], W = Π ρ_t: E_p X' ≤ J(θ) - J(p) for every cap. [18]

    Sampled log-probabilities are enough. `log_ratio` is log ρ_t, zero outside the response. The cap must be chosen
    without looking at these rollouts; a low one loses gain, a high one lets single rollouts carry it.
    Thomas, Theocharous and Ghavamzadeh 2015 (high-confidence off-policy evaluation), there for returns.

    Raises ConfigError for a cap of 1 or less: nothing could then be gained.
    """
    return clipped_value(log_ratio, reward, cap) - reward.double()


def clipped_value(
    log_ratio: Float[Tensor, "B T"], reward: Float[Tensor, " B"], cap: float = 10.0
) -> Float[Tensor, " B"]:
    """R min(W, cap) in [0, cap], W = Π ρ_t: E_p of it is at most J(θ) for every cap, and J(θ) if nothing is cut. [18]

    Less the reward of a response that another policy wrote to the same prompt, it is at least -1 and its mean at most
    what that policy loses against θ: what `train.brake.certificate` bets on. [21]

    Raises ConfigError for a cap of 1 or less.
    """
    if not cap > 1:
        raise ConfigError(f"cap is {cap}, allowed is above 1: say 10")
    return reward.double() * log_ratio.double().sum(-1).clamp(max=math.log(cap)).exp()

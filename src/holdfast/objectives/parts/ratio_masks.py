"""Masks that look at ratios over a sequence: bands, mean deviations, and the length-neutral form of trust regions."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from holdfast.core.ratios import pool
from holdfast.objectives.parts.masks import Mask
from holdfast.objectives.parts.part import require, require_bounds, require_positive
from holdfast.objectives.parts.terms import Numerator, Policy, Terms


@dataclass(frozen=True)
class RatioMask(Mask, abstract=True):
    """A mask on ρ = current / `policy`."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({f"{self.policy}_logprobs"})  # pyright: ignore[reportAttributeAccessIssue]

    def acts_where_old(self, denominator: str) -> bool:
        return self.policy != "old"  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class RatioBand(RatioMask):
    """Keep iff low <= ρ <= high, for ρ_t, for the geometric mean exp(mean_t log ρ_t), or for the product Π_t ρ_t.

    over "sequence_mean" is verl's geometric-mean rejection (geo_rs), "sequence_sum" rejection by the sequence's
    importance weight, which shrinks with length. Bounds are on θ/μ: verl's k1 thresholds are on the inverse.
    `numerator` "old" takes old/μ instead: the engine's drift alone, before the step moves θ.
    """

    low: float | None = 0.5
    high: float | None = 5.0
    over: Literal["token", "sequence_mean", "sequence_sum"] = "token"
    policy: Policy = "rollout"
    numerator: Numerator = "current"

    def __post_init__(self) -> None:
        require_bounds(self, "low", "high")

    def keep(self, terms: Terms, prepared: Tensor | None) -> Bool[Tensor, "B _"]:
        value = pool(terms.log_ratio(self.policy, self.numerator).detach(), terms.mask, self.over)
        low = math.log(self.low) if self.low else -math.inf
        high = math.inf if self.high is None else math.log(self.high)
        return (value >= low) & (value <= high)

    def formula(self) -> str:
        name = {"token": "ρ_t", "sequence_mean": "exp(mean_t log ρ_t)", "sequence_sum": "Π_t ρ_t"}[self.over]
        high = "∞" if self.high is None else f"{self.high:g}"
        above = "θ" if self.numerator == "current" else "old"
        return f"{self.low or 0:g} ≤ {name} ≤ {high}, ρ = {above}/{self.policy}"


@dataclass(frozen=True)
class Ser(RatioMask):
    """Keep sequence i iff mean_t |ρ_t − 1| <= d (SER, in arXiv 2512.23075; d in [.03, .10])."""

    max_deviation: float = 0.05
    policy: Policy = "rollout"

    def __post_init__(self) -> None:
        require_positive(self, "max_deviation")

    def keep(self, terms: Terms, prepared: Tensor | None) -> Bool[Tensor, "B 1"]:
        deviation = torch.expm1(terms.log_ratio(self.policy).detach()).abs()
        return pool(deviation, terms.mask, "sequence_mean") <= self.max_deviation

    def formula(self) -> str:
        return f"mean_t |ρ_t − 1| ≤ {self.max_deviation:g}, ρ = θ/{self.policy}"


@dataclass(frozen=True)
class LnTrm(RatioMask):
    """Keep sequence i iff Σ_t |ρ_t − 1| w_t / Σ_t w_t <= δ_W, w_t = min(1, (T−t)ε, √((T−t)δ/2)).

    LN-TRM (arXiv 2512.23075): a weighted mean, so acceptance does not fall with length as a maximum's does, and
    |Error| <= 2 E Σ_t |ρ_t − 1| w_t. T is the maximum horizon, `horizon`, not the realised length: with the latter the
    bound would not hold. t counts response tokens from 1; a token at or past the horizon weighs 0. An empty sequence
    and one of weight 0 are kept: their later tokens cannot shift any context.
    """

    max_weighted: float = 0.05
    horizon: int = 4096
    epsilon: float = 0.1
    kl: float = 0.02
    policy: Policy = "rollout"

    def __post_init__(self) -> None:
        require_positive(self, "max_weighted", "horizon", "epsilon", "kl")
        require(self, "epsilon", self.epsilon <= 1, "in (0, 1]: it is a total variation")

    def keep(self, terms: Terms, prepared: Tensor | None) -> Bool[Tensor, "B 1"]:
        deviation = torch.expm1(terms.log_ratio(self.policy).detach()).abs()
        left = (self.horizon - terms.mask.long().cumsum(dim=-1)).clamp(min=0).to(deviation.dtype)
        weight = torch.minimum(left * self.epsilon, (left * (self.kl / 2)).sqrt()).clamp(max=1)
        weight = torch.where(terms.mask, weight, 0)
        total = (weight * deviation).sum(dim=-1, keepdim=True)
        return total <= self.max_weighted * weight.sum(dim=-1, keepdim=True)

    def formula(self) -> str:
        weight = f"w_t = min(1, (T−t)·{self.epsilon:g}, √((T−t)·{self.kl / 2:g})), T = {self.horizon}"
        return f"Σ_t |ρ_t − 1| w_t / Σ_t w_t ≤ {self.max_weighted:g}, {weight}"


@dataclass(frozen=True)
class Opsm(RatioMask):
    """Reject a token iff A < 0 and mean_t (log μ − log θ) > d: off-policy sequence masking (DeepSeek-V3.2).

    The mean is signed (k1), so drift that alternates in sign goes unseen; the masks of TRM do see it.
    """

    max_mean_k1: float = 0.05
    policy: Policy = "rollout"

    def __post_init__(self) -> None:
        require_positive(self, "max_mean_k1")

    def keep(self, terms: Terms, prepared: Tensor | None) -> Bool[Tensor, "B T"]:
        drift = pool(-terms.log_ratio(self.policy).detach(), terms.mask, "sequence_mean")
        return (terms.advantages >= 0) | (drift <= self.max_mean_k1)

    def formula(self) -> str:
        return f"A ≥ 0 or mean_t (log {self.policy} − log θ) ≤ {self.max_mean_k1:g}"

"""How far the policy being trained is from the policy that sampled, token by token, and what each number is worth.

Every function returns a `Divergence`: the value together with its `Kind`. An estimate or a lower bound never proves
that a drift is small; only `upper` and `exact` values may feed a guarantee, and `Divergence` refuses the rest.

Notation: p is the rollout policy (sampled the token), q the current policy, ρ = q/p, all at one context. Divergences
are KL(p‖q) in nats, TV(p, q) = ½ Σ|p - q| in [0, 1] and χ²(c) = E_p[(ρ - 1)²]. `log_ratio` is log ρ at the sampled
token. Nothing here checks values: these functions run inside training and never synchronise the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.errors import DataError

_SERIES_RADIUS = 0.25


class Kind(StrEnum):
    """What a measured divergence says about the true one."""

    ESTIMATE = "estimate"
    LOWER = "lower"
    UPPER = "upper"
    EXACT = "exact"


@dataclass(frozen=True)
class Divergence:
    """A divergence per token (or reduced), its name, and what it says about the true value.

    >>> k2(torch.tensor([0.1])).kind
    <Kind.ESTIMATE: 'estimate'>
    """

    value: Float[Tensor, "*shape"]
    name: str
    kind: Kind

    def as_upper(self) -> Float[Tensor, "*shape"]:
        """The value where a guarantee needs an upper bound; DataError for an estimate or a lower bound."""
        return self._require(Kind.UPPER)

    def as_lower(self) -> Float[Tensor, "*shape"]:
        """The value where a violation must be proven; DataError for an estimate or an upper bound."""
        return self._require(Kind.LOWER)

    def reduce(self, monotone: Callable[[Tensor], Tensor]) -> Divergence:
        """The same divergence after a non-decreasing map (mean, sum or maximum over tokens), which keeps its kind."""
        return Divergence(monotone(self.value), self.name, self.kind)

    def __add__(self, other: Divergence) -> Divergence:
        """Sum of two divergences: exact joins any kind, any other two kinds must be the same (DataError)."""
        kind = self.kind if other.kind is Kind.EXACT else other.kind
        if self.kind is not Kind.EXACT and kind is not self.kind:
            raise DataError(
                f"cannot add {self.name} ({self.kind.value}) and {other.name} ({other.kind.value}): the sum would "
                "be neither a bound nor an estimate; allowed are two of one kind, or exact with any kind. "
                "Measure both the same way"
            )
        return Divergence(self.value + other.value, self.name if self.name == other.name else "sum", kind)

    def _require(self, kind: Kind) -> Tensor:
        if self.kind not in (kind, Kind.EXACT):
            raise DataError(
                f"{self.name} is of kind {self.kind.value}, but this needs {kind.value} or exact: pass an exact "
                "divergence (full logits, or hidden states with a head), or TV bounds from the engine's top-K"
            )
        return self.value


def expm1_minus(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """e^x - 1 - x without cancellation: never negative, relative error a few units of rounding for every x.

    Differs from `expm1(x) - x`, which in float32 is 1 % off at x = 1e-5 and may be negative below: for |x| < 1/4 the
    series x²/2 (1 + x/3 (1 + x/4 (…))) is summed instead.
    """
    terms = 14 if x.dtype == torch.float64 else 8  # 2 · .25^k / (k + 2)! below half a unit of rounding
    series = torch.ones_like(x)
    for n in range(terms, 2, -1):
        series = 1 + series * x / n
    return torch.where(x.abs() < _SERIES_RADIUS, 0.5 * x * x * series, torch.expm1(x) - x)


def k1(log_ratio: Float[Tensor, "*shape"]) -> Divergence:
    """k1 = -log ρ: unbiased for KL(p‖q), signed, noisy. (Schulman 2020, "Approximating KL divergence")."""
    return Divergence(-log_ratio, "k1", Kind.ESTIMATE)


def k2(log_ratio: Float[Tensor, "*shape"]) -> Divergence:
    """k2 = ½ (log ρ)²: a symmetric detector of single tokens, biased for KL (TRM, arXiv 2512.23075: for the maximum).

    Blind where it matters least often but most: |log ρ| ≤ √(2δ) on every sampled token leaves room for a KL of √(2δ).
    """
    return Divergence(0.5 * log_ratio * log_ratio, "k2", Kind.ESTIMATE)


def k3(log_ratio: Float[Tensor, "*shape"]) -> Divergence:
    """k3 = ρ - 1 - log ρ ≥ 0: unbiased for KL(p‖q) (TRM, arXiv 2512.23075: for the mean)."""
    return Divergence(expm1_minus(log_ratio), "k3", Kind.ESTIMATE)


def abs_log(log_ratio: Float[Tensor, "*shape"]) -> Divergence:
    """|log ρ|: a symmetric detector (first version of TRM)."""
    return Divergence(log_ratio.abs(), "abs_log", Kind.ESTIMATE)


def binary_tv(
    logprobs: Float[Tensor, "*shape"],
    rollout_logprobs: Float[Tensor, "*shape"],
) -> Divergence:
    """|q(y) - p(y)|: TV after merging all tokens but the sampled one, so a lower bound of TV.

    Computed as p(y) |expm1(log ρ)|, which keeps its digits where p and q nearly agree.
    """
    value = rollout_logprobs.exp() * torch.expm1(logprobs - rollout_logprobs).abs()
    return Divergence(value, "binary_tv", Kind.LOWER)


def binary_kl(
    logprobs: Float[Tensor, "*shape"],
    rollout_logprobs: Float[Tensor, "*shape"],
) -> Divergence:
    """p log(p/q) + (1-p) log((1-p)/(1-q)) at the sampled token: KL after merging all other tokens, a lower bound.

    Computed as Σ_i p_i (e^{d_i} - 1 - d_i) over the two outcomes, d = log q_i/p_i: the same sum, since Σ p_i e^{d_i} =
    Σ p_i, without cancellation. Probabilities are capped one unit of rounding below 1, where float logprobs no longer
    tell 1 - p; the cap moves p and q towards each other, so the bound stays a lower one.
    """
    cap = -torch.finfo(logprobs.dtype).eps
    current, rollout = logprobs.clamp(max=cap), rollout_logprobs.clamp(max=cap)
    rest = _log1mexp(current) - _log1mexp(rollout)
    value = rollout.exp() * expm1_minus(current - rollout) - torch.expm1(rollout) * expm1_minus(rest)
    return Divergence(value, "binary_kl", Kind.LOWER)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, accurate at both ends."""
    near = x > -0.6931  # each branch sees only its own side, so that no gradient is 0 · inf
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -0.6931))),
        torch.log1p(-torch.exp(torch.where(near, -0.6931, x))),
    )

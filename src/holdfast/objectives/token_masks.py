"""Masks on single tokens: trust regions per token, second-moment and position-weighted budgets, entropy quantiles."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.objectives.masks import DetectorMask, Mask
from holdfast.objectives.part import require, require_positive
from holdfast.objectives.ratio_masks import RatioMask
from holdfast.objectives.terms import Detector, Policy, Terms


def moving_away(terms: Terms, policy: Policy) -> Bool[Tensor, "B T"]:
    """True where the update would push the token further from `policy`: A > 0 and r > 1, or A < 0 and r < 1."""
    log_ratio = terms.log_ratio(policy).detach()
    return ((terms.advantages > 0) & (log_ratio > 0)) | ((terms.advantages < 0) & (log_ratio < 0))


@dataclass(frozen=True)
class Dppo(DetectorMask):
    """Reject token t iff the update moves it away from `policy` and D_t > δ: (A>0, r>1) or (A<0, r<1).

    DPPO (arXiv 2602.04879): D the binary TV (δ = .2), binary KL (.05), or the top-K or exact divergence. A divergence
    instead of a ratio: a rare token may change by a large factor, a frequent one may not.
    """

    max_divergence: float = 0.2
    detector: Detector = "binary_tv"
    policy: Policy = "rollout"

    def __post_init__(self) -> None:
        require_positive(self, "max_divergence")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {f"{self.policy}_logprobs"}

    def keep(self, terms: Terms, prepared: Tensor | None) -> Bool[Tensor, "B T"]:
        inside = terms.divergence(self.detector, self.policy) <= self.max_divergence
        return inside | ~moving_away(terms, self.policy)

    def formula(self) -> str:
        return f"{self.detector}_t(θ‖{self.policy}) ≤ {self.max_divergence:g}, or the update moves back"


@dataclass(frozen=True)
class M2po(RatioMask):
    """Reject the tokens of largest (log r)² among those moving away, until the mean of the rest is <= τ.

    M2PO (arXiv 2510.01161): a budget on the second moment, τ = .04, over the whole optimiser step.
    """

    max_second_moment: float = 0.04
    policy: Policy = "rollout"

    def __post_init__(self) -> None:
        require_positive(self, "max_second_moment")

    def prepare(self, terms: Terms, step: int) -> Tensor | None:
        square = terms.log_ratio(self.policy).square()
        counted = torch.where(moving_away(terms, self.policy), square, torch.inf).flatten()
        order = counted.argsort()
        ordered = counted[order]
        # Sorted upwards the running mean never falls, so the kept tokens are a prefix.
        mean = ordered.nan_to_num(posinf=0).cumsum(0) / torch.arange(1, ordered.numel() + 1, device=order.device)
        kept = (mean <= self.max_second_moment) & ordered.isfinite()
        inside = torch.zeros_like(kept).scatter(0, order, kept).view_as(terms.mask)
        return inside | ~moving_away(terms, self.policy)

    def keep(self, terms: Terms, prepared: Tensor | None) -> Bool[Tensor, "B T"]:
        assert prepared is not None
        return prepared

    def formula(self) -> str:
        return f"mean of (log r)² over the kept tokens that move away ≤ {self.max_second_moment:g}"


@dataclass(frozen=True)
class TopEntropy(Mask):
    """Keep the tokens whose entropy is at or above the (1 − share) quantile of the optimiser step.

    Wang et al. (arXiv 2506.01939): the 20 % of tokens where the chain forks carry the learning.
    """

    top: float = 0.2

    def __post_init__(self) -> None:
        require(self, "top", 0 < self.top <= 1, "in (0, 1]")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy"})

    def prepare(self, terms: Terms, step: int) -> Tensor | None:
        assert terms.entropy is not None
        return masked_quantile(terms.entropy, terms.mask, 1 - self.top)

    def keep(self, terms: Terms, prepared: Tensor | None) -> Bool[Tensor, "B T"]:
        assert terms.entropy is not None and prepared is not None
        return terms.entropy.detach() >= prepared

    def formula(self) -> str:
        return f"H_t in the top {self.top:g} of the step's tokens"


def masked_quantile(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], quantile: float) -> Float[Tensor, ""]:
    """The linearly interpolated quantile of the masked-in values; +inf if there are none."""
    ordered = torch.where(mask, values, torch.inf).flatten().sort().values
    if ordered.numel() == 0:
        return torch.full((), torch.inf, dtype=values.dtype, device=values.device)
    place = quantile * (mask.sum() - 1).clamp(min=0).to(values.dtype)
    low, high = ordered[place.floor().long()], ordered[place.ceil().long()]
    return torch.where(low == high, low, low + (high - low) * (place - place.floor()))

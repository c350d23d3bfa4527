"""Masks on single tokens: trust regions per token, second-moment and position-weighted budgets, entropy quantiles."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.objectives.parts.masks import DetectorMask, Mask
from holdfast.objectives.parts.part import require, require_positive
from holdfast.objectives.parts.ratio_masks import RatioMask
from holdfast.objectives.parts.terms import Detector, Policy, Terms


def moving_away(terms: Terms, policy: Policy) -> Bool[Tensor, "B T"]:
    """True where the update would push the token further from `policy`: A > 0 and r > 1, or A < 0 and r < 1."""
    log_ratio = terms.log_ratio(policy).detach()
    return ((terms.advantages > 0) & (log_ratio > 0)) | ((terms.advantages < 0) & (log_ratio < 0))


@dataclass(frozen=True)
class Dppo(DetectorMask):
    """Reject token t iff the update moves it away from `policy` and D_t > δ: (A>0, r>1) or (A<0, r<1).

    DPPO (arXiv 2602.04879): D the binary TV (δ = .2), binary KL (.05), or the top-K or exact divergence. A divergence
    instead of a ratio: a rare token may change by a large factor, a frequent one may not. `rejects` widens what is
    rejected above δ: "any" whatever the advantage says (IPO in prime-rl), "falling" the tokens with r < 1 alone,
    whatever the advantage says (its on-policy distillation).
    """

    max_divergence: float = 0.2
    detector: Detector = "binary_tv"
    policy: Policy = "rollout"
    rejects: Literal["moving_away", "any", "falling"] = "moving_away"

    def __post_init__(self) -> None:
        require_positive(self, "max_divergence")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {f"{self.policy}_logprobs"}

    def keep(self, terms: Terms, prepared: Tensor | None) -> Bool[Tensor, "B T"]:
        inside = terms.divergence(self.detector, self.policy) <= self.max_divergence
        if self.rejects == "any":
            return inside
        if self.rejects == "falling":
            return inside | (terms.log_ratio(self.policy).detach() >= 0)
        return inside | ~moving_away(terms, self.policy)

    def formula(self) -> str:
        also = {"moving_away": ", or the update moves back", "any": "", "falling": f", or θ ≥ {self.policy}"}
        return f"{self.detector}_t(θ‖{self.policy}) ≤ {self.max_divergence:g}{also[self.rejects]}"


@dataclass(frozen=True)
class Cppo(DetectorMask):
    """Reject token t iff the update moves it away and w_t D_t exceeds what the prefix has left of the budget.

    CPPO (arXiv 2606.10968, eq. 8-11 and 22): w_t = 1 − (1 − w_min)(t−1)/(n_i−1), Z_t = w_t D_t;
    c_t = min(δ, δ + b W_(t−1) − S_(t−1)) with S and W the sums of Z and w over all earlier tokens, kept or not, and
    b = the 0.9 quantile of the sequence's own D, within [b_min, 2 b_min]; keep iff Z_t <= c_t or the update moves back.
    δ = .15 (dense) or .2 (MoE), w_min = .8, b_min = .02: the paper. D is the binary TV unless another is named.
    """

    budget: float = 0.15
    w_min: float = 0.8
    b_min: float = 0.02
    quantile: float = 0.9
    detector: Detector = "binary_tv"
    policy: Policy = "rollout"

    def __post_init__(self) -> None:
        require_positive(self, "budget", "b_min")
        require(self, "w_min", 0 < self.w_min <= 1, "in (0, 1]")
        require(self, "quantile", 0 <= self.quantile <= 1, "in [0, 1]")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {f"{self.policy}_logprobs"}

    def keep(self, terms: Terms, prepared: Tensor | None) -> Bool[Tensor, "B T"]:
        mask, distance = terms.mask, terms.divergence(self.detector, self.policy)
        place = mask.cumsum(dim=-1).to(distance.dtype)
        last = (mask.sum(dim=-1, keepdim=True) - 1).clamp(min=1)
        weight = torch.where(mask, 1 - (1 - self.w_min) * (place - 1) / last, 0)
        spent = weight * distance
        spent_before, weight_before = spent.cumsum(dim=-1) - spent, weight.cumsum(dim=-1) - weight
        rate = masked_quantile(distance, mask, self.quantile).clamp(self.b_min, 2 * self.b_min)
        left = (self.budget + rate * weight_before - spent_before).clamp(max=self.budget)
        return (spent <= left) | ~moving_away(terms, self.policy)

    def formula(self) -> str:
        return (
            f"w_t {self.detector}_t ≤ min({self.budget:g}, {self.budget:g} + b W_(t−1) − S_(t−1)), or the update moves "
            f"back; w from 1 down to {self.w_min:g}, b in [{self.b_min:g}, {2 * self.b_min:g}]"
        )


@dataclass(frozen=True)
class M2po(RatioMask):
    """Reject the tokens of largest (log r)² among those moving away, until the mean of the rest is <= τ.

    M2PO (arXiv 2510.01161, its Algorithm 1): a budget on the second moment, τ = .04. Differs in that the budget is
    over the whole optimiser step. The released code solves for a cap τ' instead, counts the clipped tokens at τ'², and
    trains with PPO's clip to [1 − max(.3, 1 − e^−τ'), 1 + max(.5, e^τ' − 1)]: through these floors no ratio between .7
    and 1.5 is ever clipped, and the second moment may stay above the budget. Of tokens with equal ratios those that
    `sequence_ids` draw are kept.
    """

    max_second_moment: float = 0.04
    policy: Policy = "rollout"

    def __post_init__(self) -> None:
        require_positive(self, "max_second_moment")

    def prepare(self, terms: Terms, step: int) -> Tensor | None:
        square = terms.log_ratio(self.policy).square()
        counted = torch.where(moving_away(terms, self.policy), square, torch.inf).flatten()
        # Of equal ratios the draw of their sequences decides, never the order of the batch.
        order = terms.draws(0, step).flatten().argsort()
        order = order[counted[order].argsort(stable=True)]
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
        return masked_quantile(terms.entropy.flatten(), terms.mask.flatten(), 1 - self.top).squeeze(0)

    def keep(self, terms: Terms, prepared: Tensor | None) -> Bool[Tensor, "B T"]:
        assert terms.entropy is not None and prepared is not None
        return terms.entropy.detach() >= prepared

    def formula(self) -> str:
        return f"H_t in the top {self.top:g} of the step's tokens"


def masked_quantile(
    values: Float[Tensor, "*rows N"], mask: Bool[Tensor, "*rows N"], quantile: float
) -> Float[Tensor, "*rows 1"]:
    """The linearly interpolated quantile of the masked-in values along the last axis; +inf where there are none."""
    size = values.shape[-1]
    if size == 0:
        return values.new_full((*values.shape[:-1], 1), torch.inf)
    # Only what lies above the quantile is sorted: a tenth of the row for the 0.9 quantile.
    most = min(size, size - int(quantile * (size - 1)) + 1)
    largest = torch.where(mask, values, -torch.inf).topk(most, dim=-1).values
    last = mask.sum(dim=-1, keepdim=True) - 1
    place = quantile * last.clamp(min=0).to(values.dtype)
    below = largest.gather(-1, (last - place.floor().long()).clamp(0, most - 1))
    above = largest.gather(-1, (last - place.ceil().long()).clamp(0, most - 1))
    found = torch.where(below == above, below, below + (above - below) * (place - place.floor()))
    return torch.where(last < 0, torch.inf, found)

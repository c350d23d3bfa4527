"""Weights: detached importance weights that multiply the policy term."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.core.ratios import LOG_RATIO_LIMIT, log_ratio, pool
from holdfast.objectives.parts.part import Part, require_bounds, require_positive
from holdfast.objectives.parts.terms import Terms


class Weight(Part, family="weight", abstract=True):
    """A detached factor per token."""

    credit: ClassVar[bool] = False
    """True where it says how much a sequence counts, on policy too, and not how far the policies are apart."""

    def prepare(self, terms: Terms, step: int) -> Tensor | None:
        """A whole-batch statistic, [B, T] or 0-d, that `weight` gets back; or None."""
        return None

    def weight(self, terms: Terms, prepared: Tensor | None) -> Float[Tensor, "B _"]:
        """The factor of each token."""
        raise NotImplementedError


@dataclass(frozen=True)
class ImportanceWeight(Weight):
    """w = numerator / rollout, per token, per sequence (Π_t) or its geometric mean, kept inside [low, high].

    outside "truncate": w is limited to the interval (TIS, Yao et al. 2025; cap 2). outside "zero": w becomes 0 (MIS,
    and AReaL's cap on the decoupled objective, arXiv 2505.24298; IcePop, arXiv 2510.18855, [.5, 5]). numerator "old" is
    the correction of a decoupled objective whose ratio is θ/old; "current" is the full weight θ/rollout.
    `batch_normalize` divides by the mean weight over the step's tokens (for sequence weights: over its sequences).
    The product over a sequence shrinks with length: at log-noise .03 its mean capped at 3 falls from .90 at 512 tokens
    to .05 at 16384.
    """

    low: float | None = None
    high: float | None = 2.0
    over: Literal["token", "sequence_mean", "sequence_sum"] = "token"
    outside: Literal["truncate", "zero"] = "truncate"
    numerator: Literal["old", "current"] = "old"
    batch_normalize: bool = False

    def __post_init__(self) -> None:
        require_bounds(self, "low", "high")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"rollout_logprobs"})

    def prepare(self, terms: Terms, step: int) -> Tensor | None:
        if not self.batch_normalize:
            return None
        weights = self._raw(terms)
        if self.over == "token":
            return torch.where(terms.mask, weights, 0).sum() / terms.mask.sum().clamp(min=1)
        present = terms.mask.any(dim=-1, keepdim=True)
        return torch.where(present, weights, 0).sum() / present.sum().clamp(min=1)

    def weight(self, terms: Terms, prepared: Tensor | None) -> Float[Tensor, "B _"]:
        weights = self._raw(terms)
        return weights if prepared is None else torch.where(prepared > 0, weights / prepared.clamp(min=1e-30), 0)

    def _raw(self, terms: Terms) -> Tensor:
        if self.numerator == "current":
            ratio = terms.log_ratio("rollout").detach()
        else:
            ratio = log_ratio(terms.logprobs_of("old"), terms.logprobs_of("rollout"), terms.mask)
        ratio = pool(ratio, terms.mask, self.over).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        low = math.log(self.low) if self.low else -math.inf
        high = math.inf if self.high is None else math.log(self.high)
        if self.outside == "truncate":
            return ratio.clamp(low, high).exp()
        return torch.where((ratio >= low) & (ratio <= high), ratio.exp(), 0)

    def formula(self) -> str:
        name = "θ" if self.numerator == "current" else "old"
        ratio = f"{name}/rollout"
        unit = {"token": ratio, "sequence_mean": f"exp(mean_t log {ratio})", "sequence_sum": f"Π_t {ratio}"}
        high = "∞" if self.high in (None, math.inf) else f"{self.high:g}"
        action = "limited to" if self.outside == "truncate" else "or 0 outside"
        text = f"{unit[self.over]} {action} [{self.low or 0:g}, {high}]"
        return f"{text}, divided by its mean over the step" if self.batch_normalize else text


@dataclass(frozen=True)
class FutureKl(Weight):
    """w_t = exp(Σ_{s≥t} γ^(s−t) log r_s) limited to [low, high], γ = 2^(−1/half_life), s over response tokens.

    FIPO as ms-swift 4.6 has it: tokens whose continuation the policy has come to favour count more. Where A < 0 and
    r_t > `safety`, w is limited to [.8, 1], so that a bad token that has become likely is not pushed harder still.
    `policy` is the one below r; "denominator" that below the objective's ratio. Distances count sampled tokens: tool
    output between them is stepped over, where ms-swift counts every position.
    """

    half_life: float = 32.0
    low: float = 1.0
    high: float = 1.2
    safety: float | None = 4.0
    policy: Literal["denominator", "old", "rollout"] = "denominator"

    def __post_init__(self) -> None:
        require_positive(self, "half_life")
        require_bounds(self, "low", "high")
        if self.safety is not None:
            require_positive(self, "safety")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"rollout_logprobs"}) if self.policy == "rollout" else frozenset()

    def acts_where_old(self, denominator: str) -> bool:
        return (denominator if self.policy == "denominator" else self.policy) != "old"

    def weight(self, terms: Terms, prepared: Tensor | None) -> Float[Tensor, "B T"]:
        policy = terms.denominator if self.policy == "denominator" else self.policy
        ratio = terms.log_ratio(policy).detach()
        # Tensors, since two bare floats would come out of `where` as float32.
        one, less = ratio.new_ones(()), ratio.new_full((), 2 ** (-1 / self.half_life))
        sums, decay, reach = ratio, torch.where(terms.mask, less, one), 1
        while reach < ratio.shape[1]:
            # What the next `reach` positions add, and what is left of anything behind them.
            after = torch.nn.functional.pad(sums[:, reach:], (0, reach))
            sums = sums + decay * after
            decay = decay * torch.nn.functional.pad(decay[:, reach:], (0, reach))
            reach *= 2
        weight = sums.clamp(math.log(self.low) if self.low else None, math.log(self.high)).exp()
        if self.safety is None:
            return weight
        pushed = (terms.advantages < 0) & (ratio > math.log(self.safety))
        return torch.where(pushed, weight.clamp(0.8, 1.0), weight)

    def formula(self) -> str:
        safety = "" if self.safety is None else f", in [.8, 1] where A < 0 and r > {self.safety:g}"
        return f"exp(Σ_s≥t 2^(−(s−t)/{self.half_life:g}) log r_s) limited to [{self.low:g}, {self.high:g}]{safety}"


@dataclass(frozen=True)
class Labels(Weight):
    """w_i = (m/τ) σ_i, σ_i = e^(∓S_i/τ) / (1 + Σ_j e^(∓S_j/τ)), S = mean_t log r_t, j over the group's same label.

    REAL (rewards as labels, as ms-swift 4.6 has it): with A = ±1, the score carrier and a mean over sequences of token
    means this is the gradient of log(1 + Σ_bad e^(S/τ)) + log(1 + Σ_good e^(−S/τ)), averaged over groups of m. The sign
    is − for good and + for bad ones: those that the policy still gets wrong count most. Groups with one label only have
    weight 0. A group must lie in one optimiser step.
    """

    credit: ClassVar[bool] = True
    tau: float = 0.5

    def __post_init__(self) -> None:
        require_positive(self, "tau")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"group_ids"})

    def prepare(self, terms: Terms, step: int) -> Tensor | None:
        assert terms.batch.group_ids is not None
        score, label = self._scores(terms)
        group, present = terms.batch.group_ids, terms.mask.any(dim=-1)
        same = (group[:, None] == group[None, :]) & present[None, :]
        alike = same & (label[:, None] == label[None, :])
        both = (same & (label[:, None] == -label[None, :])).any(dim=-1) & (label != 0)
        total = torch.where(alike, score[None, :], -torch.inf).logsumexp(dim=-1)
        size = same.sum(dim=-1).clamp(min=1).to(score.dtype)
        whole = (size / self.tau).log() - torch.logaddexp(total, torch.zeros_like(total))
        return torch.where(both & present, whole, -torch.inf)[:, None]

    def weight(self, terms: Terms, prepared: Tensor | None) -> Float[Tensor, "B 1"]:
        assert prepared is not None
        return (self._scores(terms)[0][:, None] + prepared).exp()

    def _scores(self, terms: Terms) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """(∓S/τ, label) of each sequence."""
        mean = pool(terms.log_ratio(terms.denominator).detach(), terms.mask, "sequence_mean")[:, 0]
        label = pool(terms.advantages, terms.mask, "sequence_mean")[:, 0].sign()
        return -label * mean / self.tau, label

    def formula(self) -> str:
        weight = f"(m/{self.tau:g}) e^(∓S_i/{self.tau:g})/(1 + Σ_j e^(∓S_j/{self.tau:g}))"
        return f"{weight}, j over the group's same label, S = mean_t log r_t, − where A > 0"

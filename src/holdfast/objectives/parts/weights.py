"""Weights: detached importance weights that multiply the policy term."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.core.ratios import LOG_RATIO_LIMIT, log_ratio, pool
from holdfast.objectives.parts.part import Part, require_bounds
from holdfast.objectives.parts.terms import Terms


class Weight(Part, family="weight", abstract=True):
    """A detached factor per token."""

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
        high = "∞" if self.high is None else f"{self.high:g}"
        action = "limited to" if self.outside == "truncate" else "or 0 outside"
        text = f"{unit[self.over]} {action} [{self.low or 0:g}, {high}]"
        return f"{text}, divided by its mean over the step" if self.batch_normalize else text

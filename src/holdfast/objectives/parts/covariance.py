"""Entropy control by clipping: Clip-Cov takes the gradient away from a few tokens that would lower the entropy most."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from holdfast.core.entropy import token_covariance, top_share
from holdfast.objectives.parts.masks import Mask
from holdfast.objectives.parts.part import require
from holdfast.objectives.parts.schedule import Anneal
from holdfast.objectives.parts.terms import Terms


@dataclass(frozen=True)
class ClipCov(Mask):
    """⌊rK⌋ tokens drawn uniformly among those with low < Cov_t < high lose their gradient.

    Cui et al. (arXiv 2505.22617), eq. 11 and 12; r = 2e-4, low = 1, high = 5. The draw comes from `seed`, the step and
    each sequence's id and position, so no split into micro-batches changes it. Differs from the released code:
    covariance and draw are over the whole optimiser step, ⌊rK⌋ may be 0, and tokens that a clip already silences may be
    drawn too.
    """

    clip_share: float = 2e-4
    low: float = 1.0
    high: float = 5.0
    seed: int = 0
    anneal: Anneal = field(default_factory=Anneal)

    def __post_init__(self) -> None:
        require(self, "clip_share", 0 < self.clip_share <= 1, "in (0, 1]")
        require(self, "high", self.high > self.low, f"above low = {self.low:g}")

    def prepare(self, terms: Terms, step: int) -> Tensor | None:
        covariance = token_covariance(terms.logprobs.detach(), terms.advantages, terms.mask)
        eligible = (covariance > self.low) & (covariance < self.high) & terms.mask
        draw = torch.where(eligible, terms.draws(self.seed, step), -1.0)
        return top_share(draw, terms.mask, self.clip_share * self.anneal.factor(step)) & eligible

    def keep(self, terms: Terms, prepared: Tensor | None) -> Bool[Tensor, "B T"]:
        assert prepared is not None
        return ~prepared

    def formula(self) -> str:
        share = f"{self.clip_share:g}{self.anneal.formula()}"
        return f"not among {share}·K tokens drawn from {self.low:g} < Cov_t < {self.high:g}"

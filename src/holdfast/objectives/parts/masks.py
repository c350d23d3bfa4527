"""Masks: which tokens may enter the gradient of the policy term.

A mask returns True for tokens that it keeps. Sequence masks keep or reject a whole response. The rejected stay in
the denominator unless the normaliser says otherwise: the estimator is (1/N) Σ_i M_i (...) over all N sequences.
"""

from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from holdfast.core.ratios import pool
from holdfast.objectives.parts.part import Part, require_positive
from holdfast.objectives.parts.terms import Detector, Policy, Terms, detector_needs


class Mask(Part, family="mask", abstract=True):
    """Keeps or rejects tokens. Subclasses that look at the whole batch compute their verdict in `prepare`."""

    def prepare(self, terms: Terms, step: int) -> Tensor | None:
        """A whole-batch statistic, [B, T] or 0-d, that `keep` gets back with the rows of its micro-batch; or None."""
        return None

    def keep(self, terms: Terms, prepared: Tensor | None) -> Bool[Tensor, "B T"] | Bool[Tensor, "B 1"]:
        """True for the tokens that may train."""
        raise NotImplementedError


@dataclass(frozen=True)
class DetectorMask(Mask, abstract=True):
    """A mask that looks at a divergence of the current policy from `policy`."""

    @property
    def needs(self) -> frozenset[str]:
        return detector_needs(self.detector, self.policy)  # pyright: ignore[reportAttributeAccessIssue]

    def acts_where_old(self, denominator: str) -> bool:
        return "old_logprobs" not in detector_needs(self.detector, self.policy)  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class TrmMax(DetectorMask):
    """Keep sequence i iff max_t D_t <= δ (TRM-Max, arXiv 2512.23075, section 4.3).

    The paper detects with k2 = (log ρ)²/2 (trained with δ = .05) or the exact KL; note that the same number means a
    different region for each: |log ρ| <= √(2δ) bounds sampled tokens only.
    """

    delta: float = 0.05
    detector: Detector = "k2"
    policy: Policy = "rollout"

    def __post_init__(self) -> None:
        require_positive(self, "delta")

    def keep(self, terms: Terms, prepared: Tensor | None) -> Bool[Tensor, "B 1"]:
        return terms.divergence(self.detector, self.policy).amax(dim=-1, keepdim=True) <= self.delta

    def formula(self) -> str:
        return f"max_t {self.detector}_t(θ‖{self.policy}) ≤ {self.delta:g}"


@dataclass(frozen=True)
class TrmAvg(DetectorMask):
    """Keep sequence i iff (1/n_i) Σ_t D_t <= δ_avg (TRM-Avg, arXiv 2512.23075, section 4.3; k3, .001)."""

    delta_avg: float = 0.001
    detector: Detector = "k3"
    policy: Policy = "rollout"

    def __post_init__(self) -> None:
        require_positive(self, "delta_avg")

    def keep(self, terms: Terms, prepared: Tensor | None) -> Bool[Tensor, "B 1"]:
        return pool(terms.divergence(self.detector, self.policy), terms.mask, "sequence_mean") <= self.delta_avg

    def formula(self) -> str:
        return f"mean_t {self.detector}_t(θ‖{self.policy}) ≤ {self.delta_avg:g}"

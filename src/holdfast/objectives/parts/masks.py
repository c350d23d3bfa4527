"""Masks: which tokens may enter the gradient of the policy term.

A mask returns True for tokens that it keeps. Sequence masks keep or reject a whole response. The rejected stay in
the denominator unless the normaliser says otherwise: the estimator is (1/N) Σ_i M_i (...) over all N sequences.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool
from torch import Tensor

from holdfast.core.ratios import pool
from holdfast.errors import ConfigError
from holdfast.objectives.parts.part import Part, require, require_positive
from holdfast.objectives.parts.terms import (
    CONTEXT_BOUNDS,
    LOWER_BOUNDS,
    MEASURED,
    Detector,
    Numerator,
    Policy,
    Terms,
    detector_needs,
)


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
    """Keep what lies within max_t D_t <= δ (TRM-Max, arXiv 2512.23075, section 4.3): whole responses, or less.

    `scope` says what one token with D_t > δ takes with it: "sequence" its whole response (the paper), "prefix" itself
    and every later token, "token" itself alone. The latter two differ from the paper: they drop contexts and not
    samples, so E[M_t (ρ_t − 1)] = 0, a baseline may be subtracted, and certificate [13] of docs/theory holds for each.
    That needs a D_t that is known before token t is drawn and is no less than δ wherever the divergence is: exact, or
    an upper bound. A sampled detector reads y_t itself, so with it only "sequence" is allowed.

    The paper detects with k2 = (log ρ)²/2 (trained with δ = .05) or the exact KL; note that the same number means a
    different region for each: |log ρ| <= √(2δ) bounds sampled tokens only.
    """

    delta: float = 0.05
    detector: Detector = "k2"
    policy: Policy = "rollout"
    scope: Literal["sequence", "prefix", "token"] = "sequence"

    def __post_init__(self) -> None:
        require_positive(self, "delta")
        if self.scope != "sequence" and self.detector not in CONTEXT_BOUNDS:
            raise ConfigError(f"TrmMax.scope = {self.scope!r} with detector = {self.detector!r}: {self._unfit()}")

    def _unfit(self) -> str:
        why = (
            "it is a lower bound, so a context outside the region may pass for one inside"
            if self.detector in LOWER_BOUNDS
            else "it is computed from the sampled token, so dropping what it flags drops samples and not contexts: "
            "E[M_t (ρ_t − 1)] is no longer 0 and the gradient is biased"
        )
        allowed = ", ".join(map(repr, sorted(CONTEXT_BOUNDS)))
        return f"{why}; use one of {allowed} ('tv_upper' comes from the engine's top-K), or scope = 'sequence'"

    def keep(self, terms: Terms, prepared: Tensor | None) -> Bool[Tensor, "B _"]:
        outside = terms.divergence(self.detector, self.policy) > self.delta
        if self.scope == "token":
            return ~outside
        if self.scope == "prefix":
            return outside.cumsum(dim=-1) == 0
        return ~outside.any(dim=-1, keepdim=True)

    def formula(self) -> str:
        which = {"sequence": "max_t", "prefix": "max_s≤t", "token": ""}[self.scope]
        divergence = f"{self.detector}_{'s' if self.scope == 'prefix' else 't'}(θ‖{self.policy})"
        return f"{which} {divergence} ≤ {self.delta:g}".strip()


@dataclass(frozen=True)
class TrmAvg(DetectorMask):
    """Keep sequence i iff (1/n_i) Σ_t D_t <= δ_avg (TRM-Avg, arXiv 2512.23075, section 4.3; k3, .001).

    `numerator` "old" judges the engine's drift alone, before the step moves θ: sampled detectors only.
    """

    delta_avg: float = 0.001
    detector: Detector = "k3"
    policy: Policy = "rollout"
    numerator: Numerator = "current"

    def __post_init__(self) -> None:
        require_positive(self, "delta_avg")
        sampled = self.detector not in MEASURED
        require(self, "numerator", self.numerator == "current" or sampled, f"'current' for {self.detector!r}")

    def keep(self, terms: Terms, prepared: Tensor | None) -> Bool[Tensor, "B 1"]:
        divergence = terms.divergence(self.detector, self.policy, self.numerator)
        return pool(divergence, terms.mask, "sequence_mean") <= self.delta_avg

    def formula(self) -> str:
        name = "θ" if self.numerator == "current" else "old"
        return f"mean_t {self.detector}_t({name}‖{self.policy}) ≤ {self.delta_avg:g}"

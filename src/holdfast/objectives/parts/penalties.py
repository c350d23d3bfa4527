"""Penalties: per-token terms added to the loss over the response mask, whatever the trust mask says."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.core.divergences import expm1_minus
from holdfast.core.entropy import token_covariance, top_share
from holdfast.objectives.parts.part import Part, require
from holdfast.objectives.parts.schedule import Anneal
from holdfast.objectives.parts.terms import Policy, Terms


class Penalty(Part, family="penalty", abstract=True):
    """A per-token loss with a gradient; reduced with the objective's normaliser."""

    def prepare(self, terms: Terms, step: int) -> Tensor | None:
        """A whole-batch statistic, [B, T] or 0-d, that `penalty` gets back; or None."""
        return None

    def penalty(self, terms: Terms, prepared: Tensor | None, step: int) -> Float[Tensor, "B T"]:
        """What is added to each token's loss."""
        raise NotImplementedError

    def after_step(self, entropy: float) -> "Penalty":
        """This penalty for the next optimiser step, given the mean entropy (nats) of the one just taken."""
        return self


Estimator = Literal["k1", "k2", "k3"]


def kl_estimate(log_ratio: Tensor, estimator: Estimator) -> Tensor:
    """Per-token estimate of KL(θ‖μ) at tokens sampled from θ, d = log θ − log μ: k1 d, k2 d²/2, k3 e^−d − 1 + d."""
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    return expm1_minus(-log_ratio)


@dataclass(frozen=True)
class Kl(Penalty):
    """β · k(log θ − log μ), μ the reference, old or rollout policy.

    k3 is GRPO's penalty (arXiv 2402.03300, eq. 4); k2 to `old` with β is DRO's quadratic term (arXiv 2405.19107).
    k1's gradient is β ∇log π: on policy it has mean zero and penalises nothing; it is here because others offer it.
    `ratio_weighted` multiplies by θ/old, which makes k3's gradient unbiased off policy (DeepSeek-V3.2).
    """

    coefficient: float = 0.001
    estimator: Estimator = "k3"
    policy: Policy = "ref"
    ratio_weighted: bool = False

    def __post_init__(self) -> None:
        require(self, "coefficient", 0 <= self.coefficient < math.inf, "at least 0")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({f"{self.policy}_logprobs"})

    def acts_where_old(self, denominator: str) -> bool:
        return self.policy != "old" or self.estimator == "k1"

    def penalty(self, terms: Terms, prepared: Tensor | None, step: int) -> Float[Tensor, "B T"]:
        value = self.coefficient * kl_estimate(terms.log_ratio(self.policy), self.estimator)
        return value * terms.log_ratio("old").exp() if self.ratio_weighted else value

    def formula(self) -> str:
        return f"{self.coefficient:g}·{'(θ/old)·' if self.ratio_weighted else ''}{self.estimator}(θ‖{self.policy})"


@dataclass(frozen=True)
class EntropyBonus(Penalty):
    """−α H(π): the classical dense bonus. Its stationary point is π ∝ exp(Q/α): biased unless α is annealed to 0.

    Lei and Baehr (arXiv 2604.09676). `target`: active only while the step's mean entropy is at or below it; with
    `adapt` above 0 α also moves by `adapt` after every step, up below the target and down above it, within
    [0, alpha_max] (Skywork-OR1, arXiv 2505.22312): train with the objective that `Objective.after_step` returns.
    """

    alpha: float = 0.001
    anneal: Anneal = field(default_factory=Anneal)
    target: float | None = None
    adapt: float = 0.0
    alpha_max: float = 1.0

    def __post_init__(self) -> None:
        require(self, "alpha", 0 <= self.alpha <= self.alpha_max, f"in [0, alpha_max = {self.alpha_max:g}]")
        if self.target is not None:
            require(self, "target", self.target > 0, "above 0 nats (or left out)")
        require(self, "adapt", self.adapt == 0 or (self.adapt > 0 and self.target is not None), "0 without a target")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy"})

    def prepare(self, terms: Terms, step: int) -> Tensor | None:
        if self.target is None:
            return None
        assert terms.entropy is not None
        mean = terms.entropy.detach().sum() / terms.mask.sum().clamp(min=1)
        return (mean <= self.target).to(mean.dtype)

    def penalty(self, terms: Terms, prepared: Tensor | None, step: int) -> Float[Tensor, "B T"]:
        assert terms.entropy is not None
        bonus = -self.alpha * self.anneal.factor(step) * terms.entropy
        return bonus if prepared is None else bonus * prepared

    def after_step(self, entropy: float) -> "EntropyBonus":
        if self.target is None or self.adapt == 0:
            return self
        move = self.adapt if entropy <= self.target else -self.adapt
        return replace(self, alpha=min(self.alpha_max, max(0.0, self.alpha + move)))

    def formula(self) -> str:
        target = "" if self.target is None else f"·1[H ≤ {self.target:g}]"
        adapt = "" if self.adapt == 0 else f", ±{self.adapt:g} a step"
        return f"−{self.alpha:g}{self.anneal.formula()}{target}·H_t{adapt}"


@dataclass(frozen=True)
class KlCov(Penalty):
    """β · D(log θ − log μ) on the ⌊kK⌋ tokens of the batch with the largest covariance, 0 elsewhere.

    Cui et al. (arXiv 2505.22617), eq. 13 and 14, with μ = old; k = 2e-3 (7B) or 2e-4 (32B), β = 1. `policy` names μ:
    "denominator" is the policy below the objective's ratio, which is old unless the objective says otherwise.

    Every form has zero gradient where θ = μ. With μ = old and one optimiser step per rollout batch θ is old: the
    penalty does nothing at all (`Objective.idle_where_old`). Taken to the rollout policy it holds the tokens to what
    was sampled, by as much as the engine is behind or off; an engine with the trainer's weights leaves it rounding
    errors to act on. Several steps per batch give either policy the update itself to hold back.

    The released code uses form = "abs", |log θ − log old|, whose gradient under the least noise is ±β of random sign.
    "k2" and "k3" (KL(old‖θ), the paper's formula) are smooth and leave every fixed point unchanged; k2 is the default.
    Differs from the released code in that the means and the top ⌊kK⌋ are over the whole optimiser step, not over a
    micro-batch, and in that ⌊kK⌋ may be 0. Of tokens with equal covariance those that `sequence_ids` draw are taken.
    """

    share: float = 0.002
    beta: float = 1.0
    form: Literal["abs", "k2", "k3"] = "k2"
    policy: Literal["denominator", "old", "rollout"] = "denominator"
    anneal: Anneal = field(default_factory=Anneal)

    def __post_init__(self) -> None:
        require(self, "share", 0 < self.share <= 1, "in (0, 1]")
        require(self, "beta", 0 <= self.beta < math.inf, "at least 0")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset() if self.policy == "denominator" else frozenset({f"{self.policy}_logprobs"})

    def acts_where_old(self, denominator: str) -> bool:
        return (denominator if self.policy == "denominator" else self.policy) != "old"

    def prepare(self, terms: Terms, step: int) -> Tensor | None:
        covariance = token_covariance(terms.logprobs.detach(), terms.advantages, terms.mask)
        return top_share(covariance, terms.mask, self.share, ties=terms.draws(0, step))

    def penalty(self, terms: Terms, prepared: Tensor | None, step: int) -> Float[Tensor, "B T"]:
        assert prepared is not None
        log_ratio = terms.log_ratio(terms.denominator if self.policy == "denominator" else self.policy)
        forms = {"abs": torch.abs, "k2": lambda d: d.square() / 2, "k3": expm1_minus}
        distance = forms[self.form](log_ratio)
        return self.beta * self.anneal.factor(step) * torch.where(prepared, distance, 0)

    def formula(self) -> str:
        distance = f"{self.form}({'r_t' if self.policy == 'denominator' else f'θ, {self.policy}'})"
        return f"{self.beta:g}{self.anneal.formula()}·{distance}·1[Cov_t in the top {self.share:g}]"

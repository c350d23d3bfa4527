"""Exact KL against the k3 of the sampled tokens: mass that the sample has not seen, or KL that cannot be true."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.core.confidence import Confidence, Limits
from holdfast.core.units import Units
from holdfast.errors import DataError

_PER_TOKEN = 1e-6
_RELATIVE = 1e-3


@dataclass(frozen=True)
class KlComparison:
    """Mean Σ KL(c_t) - mean Σ k3_t per rollout, in nats, whose expectation is 0 for the true KL. [20]

    `difference` has one-sided limits, each at the level asked for; `standard_error` is that of its estimate. `kl` and
    `k3` are the two means. `tolerance` is what float32 may do to them: smaller differences are not judged. `by_chance`
    is 3/n of the largest Σ k3 of n units: what may be missing from a sample by chance (an outcome of probability 3/n is
    missing from n with 5 % probability), taken to be like the largest that is there.
    """

    difference: Limits
    standard_error: float
    kl: float
    k3: float
    tolerance: float
    by_chance: float
    units: int
    level: float

    @property
    def unseen(self) -> float:
        """A lower limit of the KL per rollout that sits on tokens missing from the sample, in nats; 0 where none shows.

        A token that p hardly writes adds p k3(ρ) = θ - p - p log ρ to E Σ k3, nearly its mass under θ, and is in no
        sample. A rare token that θ gave up adds p (ρ - 1 - log ρ).
        """
        lower = self.difference.lower - self.by_chance
        return lower if lower > self.tolerance else 0.0

    @property
    def contradicted(self) -> bool:
        """True where the sampled ratios show more KL than the exact one says: it is not that of these two policies."""
        return self.difference.upper < -self.tolerance


def compare_kl(
    sum_kl: Float[Tensor, " B"],
    sum_k3: Float[Tensor, " K"],
    *,
    tokens: Int[Tensor, " N"] | None = None,
    group_ids: Int[Tensor, " G"] | None = None,
    confidence: Confidence | None = None,
) -> KlComparison:
    """Compare what exact KL says with what the sampled tokens say, two one-sided tests over prompts.

    Per rollout `sum_kl` = Σ_t KL(p‖θ)(c_t), exact, and `sum_k3` = Σ_t (ρ_t - 1 - log ρ_t), both in nats over the same
    response tokens. E k3_t = KL(c_t) given the context, so both sums have the same mean, whatever the drift. KL above
    k3: the policies differ on tokens that the sample lacks (`unseen`). KL below k3: the KL belongs to other policies
    (`contradicted`). Nothing but one of the two, or chance, parts them.

    `tokens` counts response tokens (for rounding: 1e-6 nats a token and 1e-3 of the KL are tolerated), one each if not
    given. `group_ids` numbers the prompts, which are the independent units; else every rollout is one. `confidence`
    gives the level of each side, by default .99.

    Raises DataError for sums of different shapes, values that are not finite, and fewer than two units.
    """
    confidence = confidence or Confidence(level=0.99)
    kl, k3 = sum_kl.detach().cpu().double(), sum_k3.detach().cpu().double()
    if kl.ndim != 1 or kl.shape != k3.shape:
        raise DataError(f"sum_kl and sum_k3 have shapes {list(kl.shape)} and {list(k3.shape)}: give [B], one a rollout")
    if not bool((kl.isfinite() & k3.isfinite()).all()):
        raise DataError("sum_kl or sum_k3 is not finite: leave out rollouts whose divergences were not measured")
    units = Units(group_ids, len(kl))
    kl, k3 = units.mean(kl), units.mean(k3)
    differences = kl - k3
    length = 1.0 if tokens is None else tokens.double().mean().item()
    return KlComparison(
        difference=confidence.limits({"difference": differences})["difference"],
        standard_error=differences.std().item() / math.sqrt(units.count),
        kl=kl.mean().item(),
        k3=k3.mean().item(),
        tolerance=_PER_TOKEN * length + _RELATIVE * torch.maximum(kl, k3).mean().item(),
        by_chance=min(3 / units.count, 1) * k3.max().item(),
        units=units.count,
        level=confidence.level,
    )

"""What the bounds of `holdfast.core` say about enumerated pairs: exact inputs in, one table for the batch out."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.core import bounds, bounds_measured
from holdfast.core.bounds import Bound, ByPosition
from holdfast.lab.masks import Mask, hit_probability, sequence_extra, trusted_pair
from holdfast.lab.trees import Drift, Levels, TreePair, by_response, context_divergences, log_ratios, measure, path_sums

_ROUNDING = 1e-15


def bound_table(drift: Drift) -> dict[str, Bound]:
    """Every bound that exact knowledge of the drift allows, for all N pairs at once.

    To those of `holdfast.core.bounds` it adds the martingale bound at its measured second moment,
    ½ √(Σ_k E_p[χ²(c_k) (W_{k-1} - 1)²]), which no logged run can know exactly. KL and χ² are raised by 1e-15, so that
    policies that agree up to rounding do not look like a pair that violates Pinsker.
    """
    rows = bounds.table(
        drift.horizon,
        kl=drift.kl_max + _ROUNDING,
        tv=drift.tv_max,
        chi2=drift.chi2_max + _ROUNDING,
        seq_kl=drift.seq_kl + _ROUNDING,
        seq_tv=drift.seq_tv,
        by_position=ByPosition(tv=drift.mean_tv, kl=drift.mean_kl, chi2=drift.mean_chi2),
    )
    value = drift.martingale.sqrt() / 2
    rows["martingale_exact"] = Bound("martingale_exact", value, value, {"second_moment": drift.martingale}, ())
    return rows


def as_rollouts(pair: TreePair) -> bounds_measured.SampledDrift:
    """All N · V^T responses as one batch of measured rollouts, for functions that see a logged run."""
    kl, tv, chi2 = (by_response(pair, levels).flatten(0, 1) for levels in context_divergences(pair))
    log_ratio = by_response(pair, log_ratios(pair)).flatten(0, 1)
    mask = torch.ones_like(log_ratio, dtype=torch.bool)
    return bounds_measured.SampledDrift(log_ratio=log_ratio, mask=mask, kl=kl, tv=tv, chi2=chi2)


def expectation(pair: TreePair, per_response: Float[Tensor, " rollouts"]) -> Float[Tensor, " N"]:
    """E_p over the responses of `as_rollouts`, exact."""
    mass = path_sums(pair.rollout)[-1].exp()
    return (mass * per_response.reshape(mass.shape)).sum(-1)


def unified(pair: TreePair, *, known: Literal["all", "maxima"] = "all") -> Float[Tensor, " N"]:
    """The tightest proven bound on the pair's error, from its exact drift or from the maxima of KL and TV alone."""
    drift = measure(pair)
    if known == "all":
        return bounds.unified(bound_table(drift)).halved
    return bounds.unified(bounds.table(drift.horizon, kl=drift.kl_max + _ROUNDING, tv=drift.tv_max)).halved


def mask_certificate(
    pair: TreePair, bad: Levels, mask: Mask, *, known: Literal["all", "maxima"] = "all"
) -> Float[Tensor, " N"]:
    """B + P_q(hit), for the sequence mask + E_p[(1 - M) |Σ good (ρ - 1)|]; for no mask B of the pair as it is.

    B is the tightest bound, of those that `known` allows, on the policy that the mask trusts: whatever drifts in a bad
    context costs its probability and nothing else, however large it is.
    """
    if mask == "none":
        return unified(pair, known=known)
    scope: Literal["token", "prefix"] = "prefix" if mask == "prefix" else "token"
    certificate = unified(trusted_pair(pair, bad, scope), known=known) + hit_probability(pair, bad)
    return certificate + sequence_extra(pair, bad) if mask == "sequence" else certificate

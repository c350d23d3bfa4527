"""Which threshold to set: what each would accept, by length, what it would lose, and what error it leaves.

The rules are those of arXiv 2512.23075: TRM-Max keeps a rollout iff max_t D_t ≤ δ, TRM-Avg iff mean_t D_t ≤ δ_avg,
LN-TRM iff Σ_t |ρ_t - 1| w_t / Σ_t w_t ≤ δ_W. D is the exact KL where it was measured, else k2 (maximum), k3 (mean).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.core.bounds import table, unified
from holdfast.core.bounds_measured import SampledDrift, hit_probability, masked_terms, sampled_drift
from holdfast.errors import ConfigError, DataError
from holdfast.types import Batch, TokenStats

PUBLISHED = {"trm_max": 0.05, "trm_avg": 0.001, "ln_trm": 0.05}
"""Thresholds to compare with: the paper's training runs for the first two, the preset's for the third."""

_SETTING = {"trm_max": "delta", "trm_avg": "delta_avg", "ln_trm": "max_weighted"}
_NAME = {"trm_max": "TRM-Max", "trm_avg": "TRM-Avg", "ln_trm": "LN-TRM"}
_UNMEASURED_LARGEST = (0.1, 0.02)
_NOISE_QUANTILE = 0.99


@dataclass(frozen=True)
class SweepPoint:
    """One threshold: shares of rollouts kept, overall and per quarter of the lengths (None where a quarter is empty).

    `lost_signal` is the rejected share of Σ_i n_i |A_i|. `error` bounds |J(θ) - J(rollout) - L_masked| for rewards in
    [0, 1], at the sample's means; None without exact KL.
    """

    threshold: float
    acceptance: float
    acceptance_by_length: tuple[float | None, ...]
    lost_signal: float
    error: float | None


@dataclass(frozen=True)
class Recommendation:
    """Settings of the mask, in the words of its preset, what they would have done on this batch, and why."""

    rule: str
    settings: Mapping[str, float | int | str]
    point: SweepPoint
    reason: str


@dataclass(frozen=True)
class Advice:
    """A sweep and a recommendation per rule, the engine's noise floor per rule, and warnings in words."""

    sweeps: Mapping[str, tuple[SweepPoint, ...]]
    recommendations: Mapping[str, Recommendation]
    noise_floor: Mapping[str, float] | None
    length_quartiles: tuple[float, float, float]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return asdict(self)


def advise(
    batch: Batch,
    stats: TokenStats,
    *,
    horizon: int,
    target_acceptance: float = 0.7,
    noise: SampledDrift | None = None,
) -> Advice:
    """Sweep every rule's threshold over this batch and recommend one.

    `horizon` is the maximum response length T. `noise` comes from `sampled_drift` of rollouts whose engine and trainer
    held the same weights: no threshold is recommended below what numerics alone reach in one of a hundred of them. Of
    the thresholds that keep `target_acceptance`, the one with the smallest error is taken; where no exact KL was
    measured, the smallest.

    Raises ConfigError for a target outside (0, 1], DataError for a horizon below the batch's width, for empty batches
    and for what `sampled_drift` refuses.
    """
    if not 0 < target_acceptance <= 1:
        raise ConfigError(f"target_acceptance is {target_acceptance}, allowed is above 0 and at most 1")
    measured = sampled_drift(batch, stats)
    lengths = measured.mask.sum(-1)
    if horizon < measured.mask.shape[1] or not bool((lengths > 0).any()):
        raise DataError(
            f"horizon is {horizon} for a batch of {len(lengths)} rollouts and {measured.mask.shape[1]} positions: give "
            "the longest response allowed, and at least one rollout with a response"
        )
    largest = _largest(measured)
    scores = _scores(measured, horizon, largest)
    floors = None if noise is None else _noise_floor(noise, horizon, largest)
    signal = _signal(batch, lengths)
    edges = tuple(lengths[lengths > 0].double().quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist())
    quarter = (lengths[:, None] > torch.tensor(edges)).sum(-1)

    sweeps: dict[str, tuple[SweepPoint, ...]] = {}
    recommendations: dict[str, Recommendation] = {}
    for rule, score in scores.items():
        floor = floors[rule] if floors else 0.0
        points = tuple(_point(measured, rule, score, at, quarter, signal) for at in _thresholds(rule, score, floor))
        point, reason = _recommend(rule, points, target_acceptance, floor)
        settings = _settings(rule, point.threshold, measured.kl is not None, horizon, largest)
        sweeps[rule], recommendations[rule] = points, Recommendation(rule, settings, point, reason)
    warnings = _warnings(sweeps, recommendations, measured, target_acceptance)
    return Advice(sweeps, recommendations, floors, edges, warnings)


def allowed_kl(horizon: int, error: float = 1.0, *, published: bool = False) -> float:
    """The largest KL per token (nats, at every context) that keeps the error bound at or below `error`.

    About error / T by `sequence_kl`; with `published` by the bounds of arXiv 2512.23075 as printed, about
    .75 error / T^1.5. At most 10, the largest KL that is tried.
    """
    if not 0 < error < math.inf:
        raise ConfigError(
            f"error is {error}, allowed are finite numbers above 0: 1 is where a bound starts to say something"
        )
    low, high = math.log(1e-18), math.log(10.0)
    for _ in range(40):
        middle = (low + high) / 2
        rows = table(horizon, kl=math.exp(middle))
        of_paper = {name: row for name, row in rows.items() if row.published}
        value = unified(of_paper).value if published else unified(rows).halved
        low, high = (middle, high) if value.item() <= error else (low, middle)
    return math.exp(low)


def _largest(measured: SampledDrift) -> tuple[float, float]:
    """ε and δ for LN-TRM's weights: the largest that were measured, or the preset's where nothing exact was."""
    tv, kl = _UNMEASURED_LARGEST
    return (
        tv if measured.tv is None else max(measured.tv.max().item(), 1e-12),
        kl if measured.kl is None else max(measured.kl.max().item(), 1e-12),
    )


def _scores(measured: SampledDrift, horizon: int, largest: tuple[float, float]) -> dict[str, Float[Tensor, " B"]]:
    """What each rule compares with its threshold, one number per rollout; 0 for an empty response."""
    tokens = measured.mask.sum(-1).clamp(min=1)
    k2, k3 = measured.log_ratio.square() / 2, measured.k3
    peak, mean = (k2, k3) if measured.kl is None else (measured.kl, measured.kl)
    left = (horizon - measured.mask.long().cumsum(-1)).clamp(min=0).double()
    weight = torch.minimum(left * largest[0], (left * largest[1] / 2).sqrt()).clamp(max=1) * measured.mask
    weighted = (measured.surrogate.abs() * weight).sum(-1)
    return {
        "trm_max": peak.amax(-1),
        "trm_avg": mean.sum(-1) / tokens,
        "ln_trm": weighted / weight.sum(-1).clamp(min=torch.finfo(torch.float64).tiny),
    }


def _noise_floor(noise: SampledDrift, horizon: int, largest: tuple[float, float]) -> dict[str, float]:
    return {rule: score.quantile(_NOISE_QUANTILE).item() for rule, score in _scores(noise, horizon, largest).items()}


def _thresholds(rule: str, score: Float[Tensor, " B"], floor: float) -> list[float]:
    """What is worth trying: every twentieth of the rollouts, the usual threshold and the noise floor."""
    steps = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    tried = {PUBLISHED[rule], floor, *score.quantile(steps, interpolation="higher").tolist()}
    return sorted(threshold for threshold in tried if threshold > 0)


def _signal(batch: Batch, lengths: Tensor) -> Float[Tensor, " B"]:
    """Σ_t |A_it| per rollout: how much of the gradient's weight it carries."""
    advantages = batch.advantages.detach().cpu().double().abs()
    if advantages.dim() == 1:
        return advantages * lengths
    return torch.where(batch.response_mask.cpu(), advantages, 0.0).sum(-1)


def _point(
    measured: SampledDrift, rule: str, score: Tensor, threshold: float, quarter: Tensor, signal: Tensor
) -> SweepPoint:
    present = measured.mask.any(-1)
    keep = score <= threshold
    total = signal.sum().item()

    def share(group: Bool[Tensor, " B"]) -> float | None:
        return keep[group].double().mean().item() if bool(group.any()) else None

    return SweepPoint(
        threshold=threshold,
        acceptance=share(present) or 0.0,
        acceptance_by_length=tuple(share(present & (quarter == q)) for q in range(4)),
        lost_signal=signal[~keep].sum().item() / total if total > 0 else 0.0,
        error=_error(measured, rule, keep, threshold),
    )


def _error(measured: SampledDrift, rule: str, keep: Bool[Tensor, " B"], threshold: float) -> float | None:
    """S + E[(1 - M) |Σ(ρ - 1)|], right for any mask M; for TRM-Max on exact KL the sequence mask's bound if smaller."""
    if measured.kl is None:
        return None
    lost = measured.surrogate.sum(-1).abs() * ~keep
    error = (measured.kl.sum(-1) + lost).mean().item()
    if rule == "trm_max":
        terms = masked_terms(measured, threshold)
        kl = terms.kl_before.mean()
        by_mask = kl + hit_probability(terms.hit.mean(), kl) + terms.lost_to_sequence_mask.mean()
        error = min(error, by_mask.item())
    return error


def _recommend(rule: str, points: tuple[SweepPoint, ...], target: float, floor: float) -> tuple[SweepPoint, str]:
    """The point to use and the reason, in words."""
    enough = [p for p in points if p.acceptance >= target and p.threshold >= floor] or [points[-1]]
    known = [p for p in enough if p.error is not None]
    best = min(known, key=lambda p: (p.error, p.threshold)) if known else enough[0]
    kept = f"keeps {best.acceptance:.0%} of the rollouts (target {target:.0%})"
    words = [f"{kept} and {1 - best.lost_signal:.0%} of the signal"]
    if best.error is not None:
        all_of_them = points[-1].error
        words.append(
            f"leaves an error of at most {best.error:.3g}, the smallest of all thresholds with that acceptance"
        )
        if all_of_them is not None and best.error >= all_of_them and best.acceptance == 1:
            words.append("so rejecting costs more here than the drift itself")
    else:
        words.append("is the smallest with that acceptance; without exact KL its error is unknown")
    if floor > 0:
        words.append(f"stays above the engine's noise floor, {floor:.3g}")
    published = next(p for p in points if p.threshold == PUBLISHED[rule])
    words.append(f"the usual {PUBLISHED[rule]:g} would keep {published.acceptance:.0%}")
    return best, f"{_NAME[rule]} at {best.threshold:.3g} " + "; ".join(words)


def _settings(
    rule: str, threshold: float, exact: bool, horizon: int, largest: tuple[float, float]
) -> dict[str, float | int | str]:
    if rule == "ln_trm":
        return {_SETTING[rule]: threshold, "horizon": horizon, "epsilon": min(largest[0], 1.0), "kl": largest[1]}
    return {_SETTING[rule]: threshold, "detector": "kl_exact" if exact else "k2" if rule == "trm_max" else "k3"}


def _warnings(
    sweeps: Mapping[str, tuple[SweepPoint, ...]],
    recommendations: Mapping[str, Recommendation],
    measured: SampledDrift,
    target: float,
) -> tuple[str, ...]:
    """Where acceptance falls with length at the usual or the recommended TRM-Max; LN-TRM's thresholds against it."""
    found = []
    neutral = recommendations["ln_trm"]
    usual = next(p for p in sweeps["trm_max"] if p.threshold == PUBLISHED["trm_max"])
    counts = measured.mask.any(-1).sum().item() / 4
    for label, point in (("usual", usual), ("recommended", recommendations["trm_max"].point)):
        if _falls(point, counts):
            tokens = measured.kl if measured.kl is not None else measured.log_ratio.square() / 2
            rate = (tokens[measured.mask] > point.threshold).double().mean().item()
            found.append(
                f"acceptance falls with length: TRM-Max at {point.threshold:.3g} ({label}) keeps {_quarters(point)} of "
                f"the quarters from shortest to longest, as (1 - p)^T does with p = {rate:.2g} violating tokens; "
                f"LN-TRM with max_weighted = {neutral.point.threshold:.3g} keeps {_quarters(neutral.point)}"
            )
    for rule, recommendation in recommendations.items():
        if recommendation.point.acceptance < target:
            found.append(f"{_NAME[rule]}: no threshold keeps {target:.0%} of the rollouts")
    return tuple(dict.fromkeys(found))


def _falls(point: SweepPoint, per_quarter: float) -> bool:
    """True where the longest quarter is accepted 10 points and two standard errors less than the shortest."""
    present = [share for share in point.acceptance_by_length if share is not None]
    if len(present) < 2:
        return False
    first, last = present[0], present[-1]
    middle = (first + last) / 2
    return first - last > max(0.1, 2 * math.sqrt(2 * middle * (1 - middle) / max(per_quarter, 1)))


def _quarters(point: SweepPoint) -> str:
    return ", ".join("-" if share is None else f"{share:.0%}" for share in point.acceptance_by_length)

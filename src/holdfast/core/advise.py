"""Which threshold to set: what each would accept, by length, what it would lose, and what error it leaves.

A threshold is proposed only where rejecting pays, and always with room for a batch that drifts twice as far: one fitted
to a sample's own quantiles rejects harmless rollouts of the next batch.

The rules are those of arXiv 2512.23075: TRM-Max keeps a rollout iff max_t D_t ≤ δ, TRM-Avg iff mean_t D_t ≤ δ_avg,
LN-TRM iff Σ_t |ρ_t - 1| w_t / Σ_t w_t ≤ δ_W. D is the exact KL where it was measured, else k2 (maximum), k3 (mean).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
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
_ROOM = 2.0
"""How many times further the next batch may drift and still be accepted to the target."""
_EQUAL = 0.01
"""Errors within this share of the smallest are taken for equal: they are means of a sample."""


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
    """Settings of the mask part called `rule`, what they would have done on this batch, and why.

    `needed` is False where no threshold leaves a smaller error than no mask at all (`settings` then reject nothing,
    nor would they at twice the drift), and None where nothing tells: no exact KL was measured, or all that is proved of
    the error is a number above 1, the range of the reward. `acceptance_at_twice` is the share of
    rollouts that `settings` would keep if every log-ratio were twice as large, an exact KL four times.
    """

    rule: str
    settings: Mapping[str, float | int | str]
    point: SweepPoint
    needed: bool | None
    acceptance_at_twice: float
    reason: str

    def __str__(self) -> str:
        return f"{self.reason}."


@dataclass(frozen=True)
class Advice:
    """A sweep and a recommendation per rule, the engine's noise floor per rule, and warnings; prints as sentences."""

    sweeps: Mapping[str, tuple[SweepPoint, ...]]
    recommendations: Mapping[str, Recommendation]
    noise_floor: Mapping[str, float] | None
    length_quartiles: tuple[float, float, float]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        lines = [str(recommendation) for recommendation in self.recommendations.values()]
        return "\n".join([*lines, *(f"{warning[0].upper()}{warning[1:]}." for warning in self.warnings)])

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
    """Sweep every rule's threshold over this batch and recommend one, or say that no mask is needed.

    `horizon` is the maximum response length T. `noise` comes from `sampled_drift` of rollouts whose engine and trainer
    held the same weights: no threshold is recommended below what numerics alone reach in one of a hundred of them. Only
    thresholds that keep `target_acceptance` of a batch with twice this drift are considered. With exact KL the largest
    of those with the smallest error is taken. Without, no error is known: the published threshold is taken where it
    qualifies, else the smallest above it that does; below it only where a noise floor is known, at twice the noise.

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
    doubled = _scores(_scaled(measured, _ROOM), horizon, largest)
    doubled_noise = None if noise is None else _noise_floor(_scaled(noise, _ROOM), horizon, largest)
    signal = _signal(batch, lengths)
    edges = tuple(lengths[lengths > 0].double().quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist())
    quarter = (lengths[:, None] > torch.tensor(edges)).sum(-1)

    sweeps: dict[str, tuple[SweepPoint, ...]] = {}
    recommendations: dict[str, Recommendation] = {}
    for rule, score in scores.items():
        far = doubled[rule][lengths > 0]
        room = _Room(
            floor=floors[rule] if floors else 0.0,
            least=far.quantile(target_acceptance, interpolation="higher").item(),
            most=far.max().item(),
            above_noise=doubled_noise[rule] if doubled_noise else None,
        )
        tried = _thresholds(rule, score[lengths > 0], room)
        points = tuple(_point(measured, rule, score, threshold, quarter, signal) for threshold in tried)
        best, needed = _best(rule, points, room)
        settings = _settings(rule, best.threshold, measured.kl is not None, horizon, largest)
        at_twice = (far <= best.threshold).double().mean().item()
        reason = _reason(rule, best, needed, at_twice, points, target_acceptance, room.floor)
        sweeps[rule] = points
        recommendations[rule] = Recommendation(rule, settings, best, needed, at_twice, reason)
    warnings = _warnings(sweeps, recommendations, measured)
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


@dataclass(frozen=True)
class _Room:
    """What limits a rule's threshold.

    `floor` is what numerics alone reach, `above_noise` what twice the numerics would (None where they are unknown);
    `least` keeps the target of a batch with twice the drift, `most` all of it.
    """

    floor: float
    least: float
    most: float
    above_noise: float | None

    @property
    def lowest(self) -> float:
        """No threshold below is proposed."""
        return max(self.floor, self.least)


def _scaled(measured: SampledDrift, factor: float) -> SampledDrift:
    """The same contexts with every log-ratio times `factor`; a KL, quadratic in it to leading order, times its square.

    Log-ratios stop at ±700, where e^x is still finite.
    """
    kl = None if measured.kl is None else measured.kl * factor**2
    return SampledDrift((measured.log_ratio * factor).clamp(-700, 700), measured.mask, kl)


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


def _thresholds(rule: str, score: Float[Tensor, " B"], room: _Room) -> list[float]:
    """What is worth trying: every twentieth of the rollouts, the usual threshold, those with room, middles of gaps."""
    steps = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    tried = {PUBLISHED[rule], room.floor, room.least, room.most, room.above_noise or 0.0}
    found = sorted({t for t in (*tried, *score.quantile(steps, interpolation="higher").tolist()) if t > 0})
    # Between rollouts that drift little and some that drift far, the middle leaves room on both sides.
    gaps = [math.sqrt(a * b) for a, b in pairwise(found) if b > _ROOM**2 * a]
    return sorted({*found, *gaps})


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


def _best(rule: str, points: tuple[SweepPoint, ...], room: _Room) -> tuple[SweepPoint, bool | None]:
    """The point to use, and whether rejecting pays there; None where no error is known."""
    enough = [p for p in points if p.threshold >= room.lowest]
    known = [(p.error, p) for p in enough if p.error is not None]
    if not known:
        start = PUBLISHED[rule] if room.above_noise is None else min(PUBLISHED[rule], room.above_noise)
        return next((p for p in enough if p.threshold >= start), enough[-1]), None
    smallest = min(error for error, _ in known)
    best = max((p for error, p in known if error <= smallest * (1 + _EQUAL)), key=lambda p: p.threshold)
    # The largest threshold rejects nothing: where it is among the best, so is no mask.
    pays = best is not points[-1]
    return best, pays if pays or smallest < 1 else None


def _reason(
    rule: str,
    best: SweepPoint,
    needed: bool | None,
    at_twice: float,
    points: tuple[SweepPoint, ...],
    target: float,
    floor: float,
) -> str:
    """What to set and why, in words, without the full stop."""
    setting = f"{_SETTING[rule]} = {best.threshold:.3g}"
    keeps = f"keeps {best.acceptance:.0%} of the rollouts (target {target:.0%}) and {at_twice:.0%} at twice this drift"
    if needed is False:
        words = [
            f"{_NAME[rule]}: no mask is needed; without one the error is at most {best.error:.3g}, and no threshold "
            f"that keeps the target lowers it; {setting}, as a safeguard, {keeps}"
        ]
    else:
        words = [f"{_NAME[rule]}: set {setting}, which {keeps}, and {1 - best.lost_signal:.0%} of the signal"]
    if needed:
        words.append(f"the error is at most {best.error:.3g}, {points[-1].error:.3g} without a mask")
    if needed is None and best.error is None:
        words.append("without exact KL the error is unknown, with a mask or without")
    elif needed is None:
        words.append(
            f"no threshold that keeps the target lowers the bound on the error, {best.error:.3g}, which above 1 "
            "promises nothing: bring the engine closer to the trainer"
        )
    if floor > 0:
        words.append(f"numerics alone reach {floor:.3g}, the noise floor")
    published = next(p for p in points if p.threshold == PUBLISHED[rule])
    if published is not best:
        words.append(f"the usual {PUBLISHED[rule]:g} would keep {published.acceptance:.0%}")
    return "; ".join(words)


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

"""From measured rollouts to a statement about the true reward: improvement certified, or what is missing.

J(θ) - J(p) ≥ L' - B: a lower confidence limit of the surrogate gain L' against upper limits of what bounds the error,
B. Only exact divergences and upper bounds enter B; sampled k1, k2, k3 and lower bounds never do, and nothing is
assumed about contexts that were not sampled. Proofs in docs/theory/certificates.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.core.bounds_measured import (
    MaskedTerms,
    SampledDrift,
    compensation,
    error_terms,
    hit_probability,
    masked_terms,
    path,
    sampled_drift,
)
from holdfast.core.confidence import Confidence, Limits
from holdfast.errors import ConfigError, DataError
from holdfast.types import Batch, Rollout, TokenStats

MaskKind = Literal["none", "token", "prefix", "sequence"]

_RANGES = {"gain": (-0.5, 0.5), "compensated": (-0.5, 1.5)}
"""In ceilings, with the baseline ½: (R - ½) Σ(ρ - 1), and R · shortfall + (R - ½) · noise."""
_MASKS = ("none", "token", "prefix", "sequence")
_EXACT_MISSING = (
    "exact divergences: KL(rollout‖current) at every sampled context (kl_rollout, from stored logits, or from hidden "
    "states and the head), or an upper bound of TV from the engine's top-K (tv_rollout_upper)"
)


@dataclass(frozen=True)
class Certificate:
    """What these rollouts prove about J(θ) - J(rollout), in the reward's own units.

    `gain` is the surrogate L' (of the mask, if one was asked for). `bounds` are all admissible bounds on its error as
    `Limits`, `bound` names the tightest (None where there is none): `sequence_kl` and `path` hold for any reward,
    `compensated` for this one and against a loss only (J falls short of L' by no more). `inputs` are the means behind.
    `improvement` is gain.lower - that bound's upper limit, and all limits used hold together with probability `level`.
    `error_estimate` is importance sampling, with `effective_sample_size`: an estimate, never part of a guarantee.
    """

    certified: bool
    verdict: str
    missing: tuple[str, ...]
    improvement: float
    gain: Limits
    bound: str | None
    bounds: Mapping[str, Limits]
    inputs: Mapping[str, Limits]
    error_estimate: Limits
    effective_sample_size: float
    level: float
    rollouts: int
    units: int
    assumptions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; a limit that does not exist is None."""
        return _plain(asdict(self))


def certify(
    batch: Batch,
    stats: TokenStats,
    rewards: Float[Tensor, " R"],
    *,
    confidence: Confidence | None = None,
    group_ids: Int[Tensor, " G"] | None = None,
    mask: MaskKind = "none",
    threshold: float | None = None,
    reward_range: tuple[float, float] = (0.0, 1.0),
) -> Certificate:
    """Certify that the current policy (`stats`) is better than the one that sampled `batch`, or say what is missing.

    `group_ids` numbers the prompts: rollouts of one prompt are one unit, and their baseline. With `mask`, L' is the
    surrogate over accepted tokens only and contexts with KL > `threshold` are bad: any drift is allowed inside them,
    and the bound pays the current policy's probability of reaching one.

    Raises DataError for rewards outside `reward_range`, shapes that do not fit and unusable measurements; ConfigError
    for a mask without a threshold or the reverse.
    """
    confidence = confidence or Confidence()
    if mask not in _MASKS:
        raise ConfigError(f"mask is {mask!r}, allowed are {', '.join(_MASKS)}")
    if (mask == "none") != (threshold is None) or (threshold is not None and not threshold > 0):
        raise ConfigError(
            f"mask={mask!r} with threshold={threshold}: a mask needs a KL above 0 nats, 'none' needs None"
        )
    measured = sampled_drift(batch, stats)
    reward, width = _unit_rewards(rewards, reward_range, len(measured.mask))
    units = _Units(group_ids, len(reward))
    baseline = units.baseline(reward) if confidence.method == "bootstrap" else torch.full_like(reward, 0.5)
    inputs = _measure(measured, (reward, baseline), units, confidence, (mask, threshold))
    gain = _scaled(inputs.pop("gain"), width)
    errors = units.mean((reward - baseline) * error_terms(measured))
    estimate = Confidence(level=confidence.level, seed=confidence.seed).limits({"error": errors}, 2)["error"]
    bounds = {name: _scaled(value, width) for name, value in _bounds(inputs, mask).items()}
    bound = min(bounds, key=lambda name: bounds[name].upper) if bounds else None
    improvement = gain.lower - bounds[bound].upper if bound else -math.inf
    missing = _missing(gain, bounds[bound] if bound else None, units.count)
    log_weight = measured.log_ratio.sum(-1)
    return Certificate(
        certified=not missing,
        verdict=_verdict(confidence.level, gain, bound, improvement, missing),
        missing=missing,
        improvement=improvement,
        gain=gain,
        bound=bound,
        bounds=bounds,
        inputs=inputs,
        error_estimate=_scaled(estimate, width),
        effective_sample_size=(2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)).exp().item(),
        level=confidence.level,
        rollouts=len(reward),
        units=units.count,
        assumptions=_assumptions(confidence, units.count),
    )


def certify_rollouts(
    rollouts: Iterable[Rollout],
    *,
    confidence: Confidence | None = None,
    mask: MaskKind = "none",
    threshold: float | None = None,
    reward_range: tuple[float, float] = (0.0, 1.0),
) -> Certificate:
    """`certify` for logged rollouts: `trainer_logprobs` are the current policy's, `kl_exact` its KL at each context.

    `tv_upper` bounds its TV there. Rollouts of one `group_id` are one unit. Raises DataError for rollouts without
    rewards or log-probabilities; a log with neither divergence is certified nothing, and the certificate says so.
    """
    records = list(rollouts)
    columns = {name: [getattr(r, name) for r in records] for name in ("rollout_logprobs", "trainer_logprobs", "reward")}
    for name, values in columns.items():
        if not records or any(value is None for value in values):
            count = sum(value is None for value in values)
            raise DataError(
                f"{count} of {len(records)} rollouts have no {name}: a certificate needs it on every rollout"
            )
    width = max(len(record.response_ids) for record in records)

    def padded(rows: Iterable[Any]) -> Tensor:
        for record, row in zip(records, rows := list(rows), strict=True):
            if len(row) != len(record.response_ids):
                raise DataError(
                    f"rollout {record.sequence_id} has {len(record.response_ids)} response tokens and a field with "
                    f"{len(row)} entries: every token field needs one entry per response token"
                )
        return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=torch.float64)

    masks = [record.response_mask or (True,) * len(record.response_ids) for record in records]
    batch = Batch(
        advantages=torch.zeros(len(records), dtype=torch.float64),
        response_mask=padded(masks).bool(),
        rollout_logprobs=padded(columns["rollout_logprobs"]),
    )

    def padded_if_known(name: Literal["kl_exact", "tv_upper"]) -> Tensor | None:
        rows = [getattr(record, name) for record in records]
        return None if any(row is None for row in rows) else padded(rows)

    stats = TokenStats(
        logprobs=padded(columns["trainer_logprobs"]),
        kl_rollout=padded_if_known("kl_exact"),
        tv_rollout_upper=padded_if_known("tv_upper"),
    )
    groups = [record.group_id for record in records]
    return certify(
        batch,
        stats,
        torch.tensor(columns["reward"], dtype=torch.float64),
        confidence=confidence,
        group_ids=None if any(group is None for group in groups) else torch.tensor(groups),
        mask=mask,
        threshold=threshold,
        reward_range=reward_range,
    )


class _Units:
    """Independent units: prompts where they are known, else rollouts."""

    def __init__(self, group_ids: Tensor | None, rollouts: int) -> None:
        ids = torch.arange(rollouts) if group_ids is None else group_ids.detach().cpu()
        if len(ids) != rollouts:
            raise DataError(f"group_ids has {len(ids)} entries for {rollouts} rollouts: give one per rollout")
        self.index = ids.unique(return_inverse=True)[1]
        self.sizes = self.index.bincount().double()
        self.count = len(self.sizes)

    def mean(self, values: Float[Tensor, " B"]) -> Float[Tensor, " units"]:
        """The mean over each unit's rollouts."""
        return torch.zeros(self.count, dtype=torch.float64).index_add_(0, self.index, values.double()) / self.sizes

    def baseline(self, reward: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The mean reward of the prompt's other rollouts, or of all others: it never sees the rollout it serves."""
        total, size = (self.mean(reward) * self.sizes)[self.index], self.sizes[self.index]
        others = (reward.sum() - reward) / max(len(reward) - 1, 1)
        return torch.where(size > 1, (total - reward) / (size - 1).clamp(min=1), others)


def _unit_rewards(rewards: Tensor, span: tuple[float, float], rollouts: int) -> tuple[Tensor, float]:
    """Rewards moved to [0, 1], and the factor back."""
    low, high = span
    reward = rewards.detach().cpu().double()
    if not low < high:
        raise ConfigError(f"reward_range is {span}, allowed is a lower end below the upper end")
    if reward.shape != (rollouts,):
        raise DataError(f"rewards have shape {list(reward.shape)}, allowed is [{rollouts}]: one reward per rollout")
    if not bool(((reward >= low) & (reward <= high)).all()):
        raise DataError(
            f"rewards reach from {reward.min().item():g} to {reward.max().item():g}, outside reward_range {span}: give "
            "the range that the reward can take"
        )
    return (reward - low) / (high - low), high - low


def _measure(
    measured: SampledDrift,
    reward_baseline: tuple[Tensor, Tensor],
    units: _Units,
    confidence: Confidence,
    mask_threshold: tuple[MaskKind, float | None],
) -> dict[str, Limits]:
    """Limits of the gain and of everything that the bounds of this mask need, all of which hold together."""
    mask, threshold = mask_threshold
    reward, baseline = reward_baseline
    terms = None if threshold is None or measured.kl is None else masked_terms(measured, threshold)
    features = _features(measured, terms, mask, reward_baseline)
    shared = 1 + len(features)
    means = {name: units.mean(value) for name, value in features.items()}
    hits = {"hit": _hit_limits(means.pop("hit"), confidence, shared)} if "hit" in means else {}
    gain = units.mean((reward - baseline) * _surrogate(measured, terms, mask))
    return confidence.limits({"gain": gain} | means, shared, _RANGES) | hits


def _surrogate(measured: SampledDrift, terms: MaskedTerms | None, mask: MaskKind) -> Tensor:
    """Σ(ρ_t - 1) over the tokens that the mask accepts; over all where no exact KL tells (certifying nothing)."""
    if terms is None or mask == "none":
        return measured.surrogate.sum(-1)
    by_mask = {"token": terms.surrogate_outside, "prefix": terms.surrogate_before, "sequence": terms.surrogate_kept}
    return by_mask[mask]


def _features(
    measured: SampledDrift, terms: MaskedTerms | None, mask: MaskKind, reward_baseline: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """What must be bounded from above for the bounds of this mask, one number per rollout; empty where not measured."""
    if terms is not None:
        kl = terms.kl_outside if mask == "token" else terms.kl_before
        lost = {"lost_to_sequence_mask": terms.lost_to_sequence_mask} if mask == "sequence" else {}
        return {"seq_kl": kl, "hit": terms.hit} | lost
    if mask != "none":
        return {}
    by_tv = {} if measured.tv is None else {"path": path(measured)}
    if measured.kl is None:
        return by_tv
    reward, baseline = reward_baseline
    shortfall, noise = compensation(measured)
    compensated = reward * shortfall + (reward - baseline) * noise
    return {"seq_kl": measured.kl.sum(-1), "compensated": compensated} | by_tv


def _bounds(inputs: Mapping[str, Limits], mask: MaskKind) -> dict[str, Limits]:
    """The admissible bounds, each increasing in its inputs, at the estimates and at the limits of these."""
    if mask == "none":
        return {"sequence_kl" if key == "seq_kl" else key: value for key, value in inputs.items()}
    if not inputs:
        return {}

    def at(which: str) -> float:
        values = {key: max(getattr(limit, which), 0.0) for key, limit in inputs.items()}
        if not all(map(math.isfinite, values.values())):
            return math.inf
        hit, kl = torch.tensor(values["hit"]).double(), torch.tensor(values["seq_kl"]).double()
        return values["seq_kl"] + hit_probability(hit, kl).item() + values.get("lost_to_sequence_mask", 0.0)

    return {f"{mask}_mask": Limits(at("estimate"), at("lower"), at("upper"))}


def _hit_limits(units: Tensor, confidence: Confidence, shared: int) -> Limits:
    """Chernoff's limits for the mean of units in [0, 1]: n · kl(mean‖q) = log(1/error), right for any n and at zero."""
    mean = units.mean()
    budget = torch.tensor(math.log(shared / (1 - confidence.level)) / len(units)).double()
    lower = 1 - hit_probability(1 - mean, budget)
    return Limits(mean.item(), lower.item(), hit_probability(mean, budget).item())


def _missing(gain: Limits, bound: Limits | None, units: int) -> tuple[str, ...]:
    """What stands between these rollouts and a certificate; empty where there is one."""
    if bound is None:
        return (_EXACT_MISSING,)
    if gain.lower > bound.upper:
        return ()
    if gain.estimate <= 0:
        return (f"a gain: the surrogate is {gain.estimate:.3g}, so nothing says that the update helps",)
    if gain.estimate <= bound.estimate:
        times = bound.estimate / gain.estimate
        return (
            f"smaller drift: the error may be {bound.estimate:.3g} where the gain is {gain.estimate:.3g}; an update "
            f"more than {times:.2g} times smaller would do (the gain shrinks like it, the bound like its square)",
        )
    slack, noise = gain.estimate - bound.estimate, gain.estimate - gain.lower + bound.upper - bound.estimate
    if not math.isfinite(noise):
        return ("more samples: too few rollouts differ for any limit",)
    return (f"more samples: about {math.ceil(units * (noise / slack) ** 2)} independent prompts, {units} were given",)


def _verdict(level: float, gain: Limits, bound: str | None, improvement: float, missing: tuple[str, ...]) -> str:
    if not missing:
        return (
            f"Improvement certified at {level:.4g}: the expected reward rises by at least {improvement:.3g} "
            f"(surrogate gain at least {gain.lower:.3g}, its error at most {gain.lower - improvement:.3g} by {bound})."
        )
    return f"Improvement not certified at {level:.4g}. Missing: {'; '.join(missing)}."


def _assumptions(confidence: Confidence, units: int) -> tuple[str, ...]:
    return (
        "prompts are drawn independently from the distribution that J averages over, rollouts by the rollout policy",
        "log-probabilities and divergences of both policies are on the same support, normalised",
        f"limits are right asymptotically in the number of units, {units}"
        if confidence.method == "bootstrap"
        else f"no rollout's drift sums to more than {confidence.ceiling:g}",
    )


def _scaled(limits: Limits, factor: float) -> Limits:
    return Limits(limits.estimate * factor, limits.lower * factor, limits.upper * factor)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

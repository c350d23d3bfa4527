"""From measured rollouts to a statement about the true reward: improvement certified, or what is missing.

A certificate is a lower confidence limit of the mean of one light-tailed variable per rollout whose mean is at most
J(θ) - J(p): `improvement.compensated_gain` where exact KL is known at every sampled context, else
`improvement.clipped_gain`, which sampled log-probabilities give. Bounds on the surrogate's error stay beside it as a
commentary. Proofs in docs/theory/certificates.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.core import certificate_words as words
from holdfast.core.betting import EProcess
from holdfast.core.bounds_measured import (
    MaskedTerms,
    SampledDrift,
    bad_contexts,
    before_first,
    compensation,
    error_terms,
    hit_probability,
    masked_terms,
    path,
    sampled_drift,
)
from holdfast.core.confidence import Confidence, Limits
from holdfast.core.improvement import clipped_gain, compensated_gain
from holdfast.core.kl_comparison import KlComparison, compare_kl
from holdfast.core.ratios import masked
from holdfast.core.units import Units
from holdfast.errors import ConfigError, DataError
from holdfast.types import Batch, Rollout, TokenStats

MaskKind = Literal["none", "token", "prefix", "sequence"]
Variable = Literal["compensated", "clipped"]

_MASKS = ("none", "token", "prefix", "sequence")
LEAST_UNITS = 20
"""Below this many prompts the bootstrap's limits are not to be trusted: no certificate from them."""
_COMPARISON_LEVEL = 0.99


@dataclass(frozen=True)
class Certificate:
    """What these rollouts prove about J(θ) - J(rollout), in the reward's own units.

    `improvement` is the lower limit, at `level`, of the mean of one `variable` per rollout, and `certified` says that
    it is above 0 and that nothing speaks against it; where something does (`missing`), `improvement` is -inf.
    `evidence` is that mean with its limits (`clipped` has no upper one). `assumptions` come first in the `verdict`.
    `kl_comparison` holds exact KL against the sampled tokens, where there is exact KL.

    A commentary on where the error comes from, never part of the certificate: `gain`, the surrogate L' (of the mask, if
    one was asked for); `bounds` on its error as `Limits`, of which `path` misses mass that the sample does not show;
    `inputs`, the means behind them. Their limits hold together at `level`, apart from `evidence`. `error_estimate` is
    importance sampling, with `effective_sample_size`.
    """

    certified: bool
    verdict: str
    missing: tuple[str, ...]
    assumptions: tuple[str, ...]
    improvement: float
    variable: Variable
    evidence: Limits
    kl_comparison: KlComparison | None
    gain: Limits
    bounds: Mapping[str, Limits]
    inputs: Mapping[str, Limits]
    error_estimate: Limits
    effective_sample_size: float
    level: float
    rollouts: int
    units: int

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

    The policy must not depend on these rollouts: hold some back (`units.split_by_prompt`). `group_ids` numbers the
    prompts; rollouts of one prompt are one unit. Without it every rollout is taken to have a prompt of its own, which
    is false for grouped rollouts, and so is the certificate.

    Where exact KL is known at every sampled context, the limit is that of `compensated_gain`, from the bootstrap
    (`confidence`) and from 20 prompts on; exact KL that the sampled tokens contradict, either way, certifies nothing.
    Elsewhere it is that of `clipped_gain`, from an `EProcess`: right for any number of prompts, for large gains only.

    With `mask`, contexts with KL > `threshold` (nats) are bad and any drift is allowed from the first one on, which
    costs the reward of the rollouts that meet one. The kind of mask chooses the surrogate that `gain` and `bounds`
    speak of.

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
    units = Units(group_ids, len(reward))
    proof = _prove(measured, reward, threshold, group_ids, confidence)
    baseline = units.baseline(reward)
    inputs = _measure(measured, (reward, baseline), units, confidence, (mask, threshold))
    gain = _scaled(inputs.pop("gain"), width)
    errors = units.mean((reward - baseline) * error_terms(measured))
    log_weight = measured.log_ratio.sum(-1)
    evidence = _scaled(proof.evidence, width)
    missing = proof.against or words.missing(gain, evidence, units.count, proof.needed)
    return Certificate(
        certified=not missing,
        verdict=words.verdict(confidence.level, evidence.lower, missing, proof.assumptions),
        missing=missing,
        assumptions=proof.assumptions,
        improvement=-math.inf if proof.against else evidence.lower,
        variable=proof.variable,
        evidence=evidence,
        kl_comparison=proof.comparison,
        gain=gain,
        bounds={name: _scaled(value, width) for name, value in _bounds(inputs, mask).items()},
        inputs=inputs,
        error_estimate=_scaled(confidence.limits({"error": errors}, 2)["error"], width),
        effective_sample_size=(2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)).exp().item(),
        level=confidence.level,
        rollouts=len(reward),
        units=units.count,
    )


def prompt_gains(
    batch: Batch,
    stats: TokenStats,
    rewards: Float[Tensor, " R"],
    *,
    group_ids: Int[Tensor, " G"] | None = None,
    reward_range: tuple[float, float] = (0.0, 1.0),
    cap: float = 10.0,
) -> Float[Tensor, " units"]:
    """What an `EProcess` is fed: each prompt's mean of `clipped_gain`, with rewards moved to [0, 1].

    >>> test = EProcess()  # before the first step of a run
    >>> for batch, stats, rewards, prompts in steps:  # doctest: +SKIP
    ...     test = test.update(prompt_gains(batch, stats, rewards, group_ids=prompts))

    In the order of the prompts' first rollouts. `stats` are of the policy before the update that uses these rollouts.
    A gain of 1 is the whole reward range. Raises what `certify` raises for the same inputs, and ConfigError for a cap
    of 1 or less.
    """
    measured = sampled_drift(batch, stats)
    reward, _ = _unit_rewards(rewards, reward_range, len(measured.mask))
    return Units(group_ids, len(reward)).mean(clipped_gain(measured.log_ratio, reward, cap))


@dataclass(frozen=True)
class _Proof:
    """The variable's mean with its limits, what speaks against using it, and what must be true."""

    variable: Variable
    evidence: Limits
    assumptions: tuple[str, ...]
    against: tuple[str, ...] = ()
    comparison: KlComparison | None = None
    needed: int | None = None
    """How many prompts would do, where the limit's own arithmetic says so."""


def _prove(
    measured: SampledDrift,
    reward: Tensor,
    threshold: float | None,
    group_ids: Tensor | None,
    confidence: Confidence,
) -> _Proof:
    units = Units(group_ids, len(reward))
    count, sampling = units.count, words.sampling(units, grouped=group_ids is not None)
    if measured.kl is None:
        test = EProcess(confidence.level).update(units.mean(clipped_gain(measured.log_ratio, reward)))
        evidence = Limits(test.units.mean().item(), test.lower(), math.inf)
        return _Proof("clipped", evidence, words.clipped_assumptions(sampling), needed=test.prompts_needed())
    kept = measured.mask if threshold is None else before_first(bad_contexts(measured, threshold)) & measured.mask
    comparison = compare_kl(
        masked(measured.kl, kept).sum(-1),
        masked(measured.k3, kept).sum(-1),
        tokens=kept.sum(-1),
        group_ids=group_ids,
        confidence=replace(confidence, level=_COMPARISON_LEVEL),
    )
    evidence = confidence.limits({"x": units.mean(compensated_gain(measured, reward, threshold))})["x"]
    against = words.against(comparison)
    if count < LEAST_UNITS:
        against = (*against, words.few_units(count, LEAST_UNITS))
    return _Proof("compensated", evidence, words.compensated_assumptions(count, sampling), against, comparison)


def certify_rollouts(
    rollouts: Iterable[Rollout],
    *,
    confidence: Confidence | None = None,
    mask: MaskKind = "none",
    threshold: float | None = None,
    reward_range: tuple[float, float] = (0.0, 1.0),
) -> Certificate:
    """`certify` for logged rollouts: `trainer_logprobs` are the current policy's, `kl_exact` its KL at each context.

    Units are the prompts of each step, by `group_id`, else by `prompt_ids`; rollouts without either are units
    themselves. `tv_upper` bounds TV for the commentary. Raises DataError for rollouts without rewards or
    log-probabilities.
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
    return certify(
        batch,
        stats,
        torch.tensor(columns["reward"], dtype=torch.float64),
        confidence=confidence,
        group_ids=_prompts(records),
        mask=mask,
        threshold=threshold,
        reward_range=reward_range,
    )


def _prompts(records: Sequence[Rollout]) -> Tensor | None:
    """A number for the prompt of each rollout; None where no rollout names its prompt."""
    by_group = all(record.group_id is not None for record in records)
    if not by_group and not any(record.prompt_ids for record in records):
        return None
    keys = [
        (record.step, record.group_id if by_group else record.prompt_ids or place)
        for place, record in enumerate(records)
    ]
    number = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([number[key] for key in keys])


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
    units: Units,
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
    return confidence.limits({"gain": gain} | means, shared) | hits


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


def _scaled(limits: Limits, factor: float) -> Limits:
    return Limits(limits.estimate * factor, limits.lower * factor, limits.upper * factor)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

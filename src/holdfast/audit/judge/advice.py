"""What follows from a uniform sample of whole rollouts: a certificate, thresholds, bounds, what each mask would reject.

Everything here is dear and is computed once, at the end, on at most PADDED positions. It rests on the log-ratios, so
`advise_on` gives nothing where a data error was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from holdfast.audit.judge.auditor import FEWEST_PROMPTS, Audit
from holdfast.audit.measure.estimate import Estimate
from holdfast.audit.measure.tokens import Unit
from holdfast.audit.read.columns import Column
from holdfast.core.advise import PUBLISHED, Advice, advise, allowed_kl
from holdfast.core.bounds import unified
from holdfast.core.bounds_measured import observed, sampled_drift
from holdfast.core.certificate import Certificate, certify
from holdfast.errors import DataError
from holdfast.objectives.objective import Objective
from holdfast.objectives.parts.terms import Terms
from holdfast.objectives.parts.weights import ImportanceWeight
from holdfast.objectives.presets import list_presets, preset
from holdfast.types import BOUNDS, Batch, Rollout, TokenStats

PADDED = 1_000_000
_RESAMPLES = 400
_ESTIMATED = (
    "error bounds and certified errors: they need the exact KL of engine and trainer at every sampled context "
    "(`kl_exact`); log-ratios of single tokens only estimate it. Holdfast's own trainer logs it."
)
_PROMPTLESS = (
    "a certificate of improvement: it says what holds for prompts like those of the log, so it needs the rollouts of "
    f"at least {FEWEST_PROMPTS} prompts, told apart by prompt or group id."
)
_BOUNDED = (
    "error bounds under masks and certified errors: they need the exact KL of engine and trainer at every sampled "
    "context (`kl_exact`); the engine's likeliest tokens bound it from below only. The bounds without a mask "
    "rest on the upper bound of TV, the certificate on the sampled log-probabilities alone."
)


@dataclass(frozen=True)
class MaskShare:
    """What one published mask would have kept out of the gradient: shares of sequences (wholly out) and of tokens."""

    preset: str
    sequences: Estimate
    tokens: Estimate


@dataclass(frozen=True)
class BoundAt:
    """The error bound under one mask: the mean over the sample and the share of rollouts kept; None without exact KL.

    Right for any mask M and rewards in [0, 1]: E[Σ KL] + E[|Σ of rejected (ρ_t - 1)|].
    """

    mask: str
    acceptance: Estimate
    error: Estimate | None


@dataclass(frozen=True)
class CertifiedError:
    """What rejecting whole sequences above a threshold on exact KL leaves of the error: estimate and upper limit."""

    threshold: float
    estimate: float
    upper: float


@dataclass(frozen=True)
class SampleAdvice:
    """All of it; `missing` says in sentences what could not be computed and what that would take."""

    rollouts: int = 0
    tokens: int = 0
    certificate: Certificate | None = None
    advice: Advice | None = None
    bounds: Mapping[str, float] = field(default_factory=dict)
    bounds_at: tuple[BoundAt, ...] = ()
    certified_errors: tuple[CertifiedError, ...] = ()
    masks: tuple[MaskShare, ...] = ()
    allowed_kl: float | None = None
    """KL per token that, held at every context of a response as long as the longest seen, keeps the error below 1."""
    reward_range: tuple[float, float] | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Sampled:
    """The sample as tensors."""

    batch: Batch
    stats: TokenStats
    rewards: Tensor | None
    groups: Tensor
    trust: Tensor | None
    prompts_known: bool

    @property
    def prompts(self) -> Tensor | None:
        """The number of each rollout's prompt; None where the log names no prompt."""
        return self.groups if self.prompts_known else None


def advise_on(audit: Audit, seed: int = 0) -> SampleAdvice:
    """Everything that the sample of an audit allows to be said."""
    if any(f.invalidates or f.spoils_advice for f in audit.findings):
        return SampleAdvice(
            missing=("thresholds, bounds and certificates: they are made of the log-probabilities that the data error "
                     "above says cannot be trusted. Fix the log first.",)
        )  # fmt: skip
    unit = audit.facts.unit
    usable = [_row(rollout, number, unit) for number, rollout in audit.sample.uniform() if _usable(rollout)]
    if len({row.unit for row in usable}) < 2:
        return SampleAdvice(
            missing=("thresholds, bounds and certificates: they need log-probabilities of both engine and trainer on "
                     "the rollouts of at least two prompts.",)
        )  # fmt: skip
    sampled = _tensors(_fit(usable, seed))
    missing: list[str] = []
    horizon = sampled.batch.response_mask.shape[1]
    advice = advise(sampled.batch, sampled.stats, horizon=horizon)
    span = _reward_range(audit.statistics.rewards) if sampled.rewards is not None else None
    certificate = _certificate(sampled, span, missing) if unit == "prompt" else None
    if unit == "sequence":
        missing.append(_PROMPTLESS)
    if sampled.stats.kl_rollout is None:
        missing.append(_ESTIMATED if sampled.stats.tv_rollout_upper is None else _BOUNDED)
    return SampleAdvice(
        rollouts=len(sampled.batch.response_mask),
        tokens=int(sampled.batch.response_mask.sum()),
        certificate=certificate,
        advice=advice,
        bounds=_bounds(sampled),
        bounds_at=_bounds_at(sampled, advice),
        certified_errors=_certified_errors(sampled, span, advice) if _kl_holds(certificate, missing) else (),
        masks=_mask_shares(sampled, missing),
        allowed_kl=allowed_kl(max(1, audit.facts.longest)),
        reward_range=span,
        missing=tuple(missing),
    )


@dataclass(frozen=True)
class _Row:
    """What the sums need of one rollout, a few bytes a token; `unit` tells what it is resampled with."""

    number: int
    unit: object
    named: bool
    reward: float | None
    tokens: Mapping[str, Column]

    def __len__(self) -> int:
        return len(self.tokens["rollout_logprobs"])


_COLUMNS = {
    "rollout_logprobs": np.float32,
    "trainer_logprobs": np.float32,
    "response_mask": np.bool_,
    "trust_mask": np.bool_,
    "kl_exact": np.float32,
    "entropy": np.float32,
    "advantages": np.float32,
    **dict.fromkeys(BOUNDS, np.float32),
}


def _usable(rollout: Rollout) -> bool:
    engine, trainer = rollout.rollout_logprobs, rollout.trainer_logprobs
    if not engine or not trainer:
        return False
    own = rollout.response_mask or (True,) * len(engine)
    values = np.array([engine, trainer])[:, np.array(own, bool)]
    return values.size > 0 and bool((np.isfinite(values) & (values <= 1e-3)).all())


def _row(rollout: Rollout, number: int, unit: Unit) -> _Row:
    given = {name: getattr(rollout, name) for name in _COLUMNS}
    tokens = {name: np.array(given[name], kind) for name, kind in _COLUMNS.items() if given[name] is not None}
    named = rollout.group_id is not None or bool(rollout.prompt_ids)
    return _Row(number, _unit(rollout, number, unit), named, rollout.reward, tokens)


def _unit(rollout: Rollout, number: int, unit: Unit) -> object:
    """Rollouts of one prompt are one unit; a prompt of another step is another unit, since the policy is another."""
    if unit == "sequence":
        return number
    if rollout.group_id is not None:
        return rollout.step, rollout.group_id
    return (rollout.step, rollout.prompt_ids) if rollout.prompt_ids else number


def _fit(rows: Sequence[_Row], seed: int) -> list[_Row]:
    """As many of them, drawn at random, as fit into PADDED positions."""
    kept, longest = [], 0
    for i in np.random.default_rng(seed).permutation(len(rows)):
        longest = max(longest, len(rows[i]))
        if len(kept) >= 2 and longest * (len(kept) + 1) > PADDED:
            break
        kept.append(rows[i])
    return sorted(kept, key=lambda row: row.number)


def _tensors(rows: Sequence[_Row]) -> _Sampled:
    lengths = [len(row) for row in rows]

    def padded(name: str) -> Tensor | None:
        if any(name not in row.tokens for row in rows):
            return None
        out = np.zeros((len(rows), max(lengths)), _COLUMNS[name])
        for place, row in enumerate(rows):
            out[place, : lengths[place]] = row.tokens[name]
        return torch.from_numpy(out)

    mask = padded("response_mask")
    if mask is None:
        mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    kl, entropy, advantages = padded("kl_exact"), padded("entropy"), padded("advantages")
    known = torch.tensor([torch.nan if row.reward is None else row.reward for row in rows], dtype=torch.float64)
    units = {unit: place for place, unit in enumerate(dict.fromkeys(row.unit for row in rows))}
    engine, trainer = padded("rollout_logprobs"), padded("trainer_logprobs")
    assert engine is not None and trainer is not None
    batch = Batch(
        advantages=torch.zeros(len(rows)) if advantages is None else advantages.nan_to_num(),
        response_mask=mask,
        rollout_logprobs=torch.where(mask, engine, 0.0),
    )
    exact = None if kl is None or bool((mask & ~(kl >= -1e-6)).any()) else torch.where(mask, kl.clamp(min=0), 0.0)
    proven = [None if (v := padded(name)) is None else torch.where(mask, v, 0.0) for name in BOUNDS]
    kl_lower, tv_lower, tv_upper = proven
    stats = TokenStats(
        logprobs=torch.where(mask, trainer, 0.0),
        entropy=entropy,
        kl_rollout=exact,
        kl_rollout_lower=kl_lower,
        tv_rollout_lower=tv_lower,
        tv_rollout_upper=tv_upper,
    )
    groups = torch.tensor([units[row.unit] for row in rows])
    rewards = known if bool(known.isfinite().all()) else None
    return _Sampled(batch, stats, rewards, groups, padded("trust_mask"), any(row.named for row in rows))


def _reward_range(seen: tuple[float, float] | None) -> tuple[float, float]:
    """[0, 1], widened to what was logged."""
    low, high = seen or (0.0, 1.0)
    return min(0.0, low), max(1.0, high)


def _certificate(sampled: _Sampled, span: tuple[float, float] | None, missing: list[str]) -> Certificate | None:
    if span is None or sampled.rewards is None:
        missing.append("a certificate of improvement: it needs the reward of every rollout.")
        return None
    try:
        return certify(sampled.batch, sampled.stats, sampled.rewards, group_ids=sampled.prompts, reward_range=span)
    except DataError as error:
        missing.append(f"a certificate of improvement: {error}")
        return None


def _kl_holds(certificate: Certificate | None, missing: list[str]) -> bool:
    """False, with a sentence, where the sampled log-ratios contradict exact KL."""
    comparison = certificate.kl_comparison if certificate else None
    if comparison is not None and comparison.contradicted:
        missing.append(
            f"certified errors: `kl_exact` averages {comparison.kl:.3g} nats a rollout, the sampled log-ratios show "
            f"{comparison.k3:.3g}. It is not the KL of these two policies."
        )
        return False
    return certificate is not None


def _certified_errors(
    sampled: _Sampled, span: tuple[float, float] | None, advice: Advice
) -> tuple[CertifiedError, ...]:
    """At every third threshold of the sweep, the proposed one among them."""
    if sampled.rewards is None or span is None or sampled.stats.kl_rollout is None:
        return ()
    swept = [point.threshold for point in advice.sweeps["trm_max"]]
    tried = {*swept[::3], swept[-1], advice.recommendations["trm_max"].point.threshold}
    found = []
    for threshold in sorted(tried):
        certificate = certify(
            sampled.batch,
            sampled.stats,
            sampled.rewards,
            group_ids=sampled.prompts,
            mask="sequence",
            threshold=threshold,
            reward_range=span,
        )
        limits = certificate.bounds["sequence_mask"]
        found.append(CertifiedError(threshold, limits.estimate, limits.upper))
    return tuple(found)


def _bounds(sampled: _Sampled) -> dict[str, float]:
    """Every bound at the sample's means, tightest first; empty without exact KL and without an upper bound of TV."""
    if sampled.stats.kl_rollout is None and sampled.stats.tv_rollout_upper is None:
        return {}
    rows = observed(sampled.batch, sampled.stats)
    values = {name: bound.halved.item() for name, bound in rows.items()}
    assert unified(rows).halved.item() <= min(values.values()) * (1 + 1e-9)
    return dict(sorted(values.items(), key=lambda pair: pair[1]))


def _bounds_at(sampled: _Sampled, advice: Advice) -> tuple[BoundAt, ...]:
    """Without a mask, as recorded, at the published and at the proposed threshold of TRM-Max."""
    measured = sampled_drift(sampled.batch, sampled.stats)
    mask = sampled.batch.response_mask
    peak = (measured.log_ratio.square() / 2 if measured.kl is None else measured.kl).amax(-1)
    proposed = advice.recommendations["trm_max"].point.threshold
    rejected = {"no mask": torch.zeros_like(mask)}
    if sampled.trust is not None:
        rejected["the mask recorded in this log"] = mask & ~sampled.trust
    for name, threshold in (("published", PUBLISHED["trm_max"]), ("proposed", proposed)):
        rejected[f"TRM-Max at {threshold:.3g} ({name})"] = mask & (peak > threshold)[:, None]
    found = []
    for name, out in rejected.items():
        error = None
        if measured.kl is not None:
            lost = torch.where(out, measured.surrogate, 0.0).sum(-1).abs()
            error = _mean(measured.kl.sum(-1) + lost, torch.ones_like(lost), sampled.groups)
        found.append(BoundAt(name, _share(mask.any(-1) & ~out.any(-1), mask.any(-1), sampled.groups), error))
    return tuple(found)


def _mask_shares(sampled: _Sampled, missing: list[str]) -> tuple[MaskShare, ...]:
    """The mask parts, and the weights that can be zero, of every preset that rejects by drift."""
    found, lacking = [], {}
    for name in list_presets():
        objective = preset(name)
        lack = [need for need in sorted(objective.needs) if not _has(sampled, need)]
        if lack:
            lacking |= {name: lack} if objective.masks else {}
            continue
        out = _rejected(objective, sampled)
        if out is not None:
            own = sampled.batch.response_mask.sum(-1)
            whole = (out.sum(-1) == own) & (own > 0)
            share = _share(whole, own > 0, sampled.groups), _share(out.sum(-1), own, sampled.groups)
            found.append(MaskShare(name, *share))
    if lacking:
        names = ", ".join(f"{name} ({', '.join(lack)})" for name, lack in lacking.items())
        missing.append(f"what these masks would have rejected, for lack of a column: {names}.")
    return tuple(found)


def _has(sampled: _Sampled, need: str) -> bool:
    owner = sampled.stats if hasattr(sampled.stats, need) else sampled.batch
    return getattr(owner, need) is not None


def _rejected(objective: Objective, sampled: _Sampled) -> Tensor | None:
    """Flags of own tokens that the objective lets out of the gradient; None where it has no part that could."""
    terms = Terms.of(sampled.batch, sampled.stats)
    mask = sampled.batch.response_mask
    zeroing = [part for part in objective.weights if isinstance(part, ImportanceWeight) and part.outside == "zero"]
    if not objective.masks and not zeroing:
        return None
    keep = mask
    for part in objective.masks:
        keep = keep & part.keep(terms, part.prepare(terms, 0))
    for part in zeroing:
        keep = keep & (part.weight(terms, part.prepare(terms, 0)) != 0)
    return mask & ~keep


def _mean(values: Tensor, counts: Tensor, groups: Tensor) -> Estimate:
    """Σ values / Σ counts with its bootstrap interval over prompts."""
    place = groups.numpy()
    sums, sizes = (np.bincount(place, t.double().numpy()) for t in (values, counts))
    draws = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), _RESAMPLES)
    low, high = np.quantile(draws @ sums / np.maximum(draws @ sizes, 1e-12), [0.025, 0.975])
    return Estimate(float(sums.sum() / max(sizes.sum(), 1e-12)), float(low), float(high))


def _share(values: Tensor, counts: Tensor, groups: Tensor) -> Estimate:
    """A mean of flags. Where none or all of n prompts had any, resampling shows no spread: 1 - .025^(1/n) is left."""
    mean = _mean(values, counts, groups)
    spread = 1 - 0.025 ** (1 / len(groups.unique()))
    if mean.value == 0:
        return Estimate(0.0, 0.0, spread)
    return Estimate(1.0, 1 - spread, 1.0) if mean.value == 1 else mean

"""One step's numbers: how well the policy does, how far engine and trainer have drifted, what was masked.

The names are those of metrics.jsonl; docs/trainer.md explains each. A number that was not measured has no key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.core.bounds import unified
from holdfast.core.bounds_measured import observed
from holdfast.core.divergences import abs_log, k1, k2, k3
from holdfast.objectives.metrics import LengthQuartiles
from holdfast.tasks.verify import Score, mean_parts
from holdfast.train.brake.brake import Taken
from holdfast.train.sampling.data import Rollouts
from holdfast.train.update import Updated

# What the objective reports about an update, under the names of metrics.jsonl.
_OF_OBJECTIVE = (
    "loss",
    "grad_norm",
    "masked_sequences",
    "masked_tokens",
    "clip_share",
    "ess",
    "weight_mean",
    "weight_max",
    "effective_tokens",
    "coefficient_max",
    "covariance_share",
)


def step_metrics(rollouts: Rollouts, taken: Taken) -> dict[str, Any]:
    """Everything about one step that is not time; drift and update are of the rollouts that were trained on."""
    record, updated = outcome_metrics(rollouts) | taken.metrics(), taken.updated
    for name, measure in (
        ("drift", lambda: drift_metrics(taken.trained, updated)),
        ("update", lambda: update_metrics(updated)),
        ("bounds", lambda: bound_metrics(updated)),
    ):
        record = measured(record, name, measure)
    return record


def measured(record: Mapping[str, Any], name: str, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The record with what was measured beside training; where that fails, with the reason under `not_measured`."""
    try:
        return dict(record) | dict(measure())
    except Exception as error:  # nothing that is only looked at may end a run
        failed = {name: f"{type(error).__name__}: {error}"}
        return dict(record) | {"not_measured": record.get("not_measured", {}) | failed}


def recordable(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without numbers that JSON cannot say; `non_finite` has the first such value under each name."""
    odd = {name: str(found[0]) for name, value in record.items() if (found := list(_non_finite(value)))}
    kept = {name: value for name, value in record.items() if name not in odd}
    return kept | ({"non_finite": odd} if odd else {})


def _non_finite(value: Any) -> Iterator[float]:
    if isinstance(value, float) and not math.isfinite(value):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _non_finite(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _non_finite(inner)


def outcome_metrics(rollouts: Rollouts) -> dict[str, Any]:
    """What was sampled and how it was rewarded; accuracy only where every reward is 0 or 1."""
    rewards, lengths = rollouts.rewards.float(), rollouts.sequences.response_mask.sum(dim=1).float()
    edges = torch.quantile(rewards, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    binary = bool(((rewards == 0) | (rewards == 1)).all())
    truncated = [episode.finish_reason == "length" for episode in rollouts.episodes]
    return {
        "tokens": rollouts.tokens,
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std(correction=0)),
        "reward_quartiles": edges.tolist(),
        **({"accuracy": float(rewards.mean())} if binary else {}),
        "response_length_mean": float(lengths.mean()),
        "truncated_share": sum(truncated) / len(truncated),
    }


def lag_metrics(rollouts: Rollouts, step: int) -> dict[str, Any]:
    """How many updates the weights that sampled were behind: the oldest token's, and the mean over tokens."""
    lags = step - 1 - rollouts.versions[rollouts.sequences.response_mask]
    return {"policy_lag": int(lags.max()), "policy_lag_mean": float(lags.float().mean())}


def reward_metrics(scores: Sequence[Score]) -> dict[str, Any]:
    """Means of several reward functions, and rewards that could not be had and count as 0.

    Of these: how many, how many of them took too long, the first reason.
    """
    record: dict[str, Any] = mean_parts(scores, "reward")
    failed = [score for score in scores if score.error is not None]
    if failed:
        late = sum(score.late for score in failed)
        record |= {"reward_errors": len(failed), "reward_timeouts": late, "reward_error": failed[0].error}
    return record


def drift_metrics(rollouts: Rollouts, updated: Updated) -> dict[str, Any]:
    """How far the trainer's policy, before its update, is from the one that sampled; nats per token."""
    mask, stats = rollouts.sequences.response_mask, updated.stats
    log_ratio = stats.logprobs - rollouts.rollout_logprobs
    record: dict[str, Any] = {"rollout_k1_mean": float(k1(log_ratio).value[mask].mean())}
    for name, value in (
        ("rollout_k2", k2(log_ratio).value),
        ("rollout_k3", k3(log_ratio).value),
        ("abs_log_ratio", abs_log(log_ratio).value),
        ("kl_exact", stats.kl_rollout),
        ("kl_lower", stats.kl_rollout_lower),
        ("tv_lower", stats.tv_rollout_lower),
        ("tv_upper", stats.tv_rollout_upper),
    ):
        if value is not None:
            kept = value[mask]
            record |= {f"{name}_mean": float(kept.mean()), f"{name}_max": float(kept.max())}
    if stats.entropy is not None:
        record["entropy"] = float(stats.entropy[mask].mean())
    return record | {"drift_by_position": drift_by_position(mask, log_ratio, stats.kl_rollout)}


def drift_by_position(
    mask: Bool[Tensor, "B T"], log_ratio: Float[Tensor, "B T"], kl: Float[Tensor, "B T"] | None, bins: int = 16
) -> dict[str, list[float]]:
    """Mean |log ratio| and exact KL in equal bins of the response position; `edges` has one more entry."""
    width = mask.shape[1]
    cuts = sorted({round(width * i / bins) for i in range(bins + 1)})
    spans = [(a, b) for a, b in pairwise(cuts) if bool(mask[:, a:b].any())]
    record = {
        "edges": [float(spans[0][0]), *(float(b) for _, b in spans)],
        "abs_log_mean": [float(log_ratio[:, a:b].abs()[mask[:, a:b]].mean()) for a, b in spans],
    }
    if kl is not None:
        record["kl_exact_mean"] = [float(kl[:, a:b][mask[:, a:b]].mean()) for a, b in spans]
        record["kl_exact_max"] = [float(kl[:, a:b][mask[:, a:b]].max()) for a, b in spans]
    return record


def update_metrics(updated: Updated) -> dict[str, Any]:
    """What the objective kept, clipped and weighted, with acceptance against response length."""
    known = updated.metrics
    record: dict[str, Any] = {name: known[name] for name in _OF_OBJECTIVE if name in known}
    return record | length_metrics(updated.batch.response_mask, updated.trust_mask)


def length_metrics(mask: Bool[Tensor, "B T"], kept: Bool[Tensor, "B T"]) -> dict[str, Any]:
    """By quartile of response length: masked share of the step's sequences (None: no response), how many, the edges."""
    quartiles = LengthQuartiles.of(mask)
    rejected = mask.any(dim=1) & ~(kept & mask).any(dim=1)
    sizes = [int(size) for size in quartiles.sizes]
    shares = zip(quartiles.shares(mask, rejected).tolist(), sizes, strict=True)
    return {
        "masked_by_length": [share if size else None for share, size in shares],
        "length_counts": sizes,
        "length_quartiles": quartiles.edges.tolist(),
    }


def bound_metrics(updated: Updated) -> dict[str, Any]:
    """What the drift at this step's contexts can cost, by every bound; halved values, a reward lying in [0, 1].

    A commentary, not a certificate: maxima are over the contexts that were sampled. Nothing without exact KL or an
    upper bound of TV.
    """
    stats = updated.stats
    if stats.kl_rollout is None and stats.tv_rollout_upper is None:
        return {}
    if stats.chi2_rollout is not None and not bool(torch.isfinite(stats.chi2_rollout).all()):
        stats = replace(stats, chi2_rollout=None)
    rows = observed(updated.batch, stats)
    tightest = unified(rows)
    values = {name: float(row.halved) for name, row in rows.items()}
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    return {"bounds": finite | {"unified": float(tightest.halved), "unified_name": tightest.winner}}

"""What a person should know about a step, in plain words, with the number that would change it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from holdfast.core.ratios import pool
from holdfast.objectives.objective import Objective
from holdfast.objectives.parts.gates import One
from holdfast.objectives.parts.masks import TrmAvg, TrmMax
from holdfast.objectives.parts.terms import Terms
from holdfast.report.learning import clearly_lower
from holdfast.train.update import Updated

KEPT = 0.7  # acceptance that the papers aim for


def step_warnings(record: Mapping[str, Any], objective: Objective, updated: Updated) -> list[str]:
    """Sentences about zero gradients, length bias, truncation and failed rewards; empty for an ordinary step."""
    return [
        *_about_gradient(record, objective, updated),
        *_about_length(record),
        *_about_truncation(record),
        *_about_rewards(record),
    ]


def ratio_warnings(objective: Objective, updates: int) -> list[str]:
    """What to know before the first step: parts that nothing can move, and drift that several steps count twice."""
    if updates > 1:
        return objective.double_corrections
    idle = objective.idle_note("raise batch.minibatches or batch.epochs", gate=False)
    return [*_about_ratio(objective), *([idle] if idle else [])]


def _about_ratio(objective: Objective) -> Iterator[str]:
    """A ratio to the trainer's own weights, which is 1, while nothing else corrects the engine's drift."""
    if objective.denominator == "old" and not objective.weights and objective.gate != One():
        yield (
            "with one update per rollout batch the ratio θ/old is exactly 1: the gate never acts, and the engine's "
            "drift goes uncorrected; set objective.denominator = 'rollout', add a weight such as tis, or raise "
            "batch.minibatches"
        )


def fitted_thresholds(objective: Objective, updated: Updated, kept: float = KEPT) -> dict[str, float]:
    """For each threshold of a sequence mask, the value that would have kept this share of the step's sequences."""
    terms = Terms.of(updated.batch, updated.stats)
    fitted = {}
    for mask in objective.masks:
        if isinstance(mask, TrmMax):
            fitted["delta"] = terms.divergence(mask.detector, mask.policy).amax(dim=-1)
        elif isinstance(mask, TrmAvg):
            fitted["delta_avg"] = pool(
                terms.divergence(mask.detector, mask.policy), terms.mask, "sequence_mean"
            ).squeeze(-1)
    return {name: float(torch.quantile(values.float(), kept)) for name, values in fitted.items()}


def _about_gradient(record: Mapping[str, Any], objective: Objective, updated: Updated) -> Iterator[str]:
    if record["reward_std"] == 0.0:
        yield f"all rewards equal {record['reward_mean']:g}: advantages are zero, nothing is learned from this step"
    elif not bool(updated.advantages.any()):
        yield "rewards equal within every group: advantages are zero, nothing is learned from this step"
    if record["masked_sequences"] == 1.0:
        advice = [
            f"raise {name} to {value:.2g} to keep {KEPT:.0%} of this step"
            for name, value in fitted_thresholds(objective, updated).items()
        ]
        yield f"every sequence masked: no gradient; {' and '.join(advice) or 'loosen the masks'}"
    elif record["masked_tokens"] == 1.0:
        yield "every token masked: no gradient; loosen the masks"


def _about_length(record: Mapping[str, Any]) -> Iterator[str]:
    shortest, longest = record["masked_by_length"][0], record["masked_by_length"][3]
    counts = record["length_counts"]
    enough = min(counts[0], counts[3]) >= max(4, sum(counts) / 8)  # lengths that are nearly all equal have no quarters
    if not enough or shortest is None or longest is None:
        return
    if longest - shortest > 0.2 and clearly_lower(1 - longest, counts[3], 1 - shortest, counts[0]):
        yield (
            f"acceptance falls with length: {1 - shortest:.0%} of the shortest quarter is kept, {1 - longest:.0%} of "
            "the longest; a mask by mean divergence (trm_avg) or a larger threshold trains on long responses too"
        )


def _about_truncation(record: Mapping[str, Any]) -> Iterator[str]:
    if record["truncated_share"] > 0.5:
        yield f"{record['truncated_share']:.0%} of responses were cut off at sampling.max_tokens"


def _about_rewards(record: Mapping[str, Any]) -> Iterator[str]:
    if "reward_errors" in record:
        yield (
            f"{record['reward_errors']} responses could not be scored and got reward 0; the first: the reward function "
            f"{record['reward_error']}"
        )

"""Level 1: our objectives as verl's policy losses, one micro-batch at a time.

verl passes the log-probabilities of the old and the current policy; in bypass mode old is the rollout. The loss is this
micro-batch's share of the optimiser step, so shares of micro-batches and ranks add up exactly.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.errors import ConfigError
from holdfast.integrations.verl.config import HoldfastLossConfig, configured_objective, loss_config
from holdfast.integrations.verl.levels import Given, check, check_whole_step
from holdfast.integrations.verl.names import TRAINER_MODE
from holdfast.objectives.objective import Objective
from holdfast.objectives.parts.gates import Clip
from holdfast.objectives.parts.terms import Terms
from holdfast.objectives.policy_term import gated
from holdfast.objectives.whole_step import whole_step_parts
from holdfast.types import Batch, Counts, TokenStats

VERL_NAMES = {"ppo_kl": "old_k1_mean"}
"""verl's names of metrics that ours equal, so that its dashboards keep working; and see `clip_fractions`."""

_LOG = logging.getLogger(__name__)
_WHOLE_STEP = ("covariance_share", "masked_sequences_q", "ess", "effective_tokens")
"""Metrics that a mean over micro-batches would falsify, as it would every maximum; level 2 has them."""


def policy_loss(
    old_log_prob: Float[Tensor, "B T"],
    log_prob: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Float[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The loss that `register_policy_loss` registers, with the signature that verl 0.9.1 calls.

    The objective's own normaliser replaces `loss_agg_mode`. `rollout_is_weights` multiply the advantages, which
    multiplies every token's term: objectives are homogeneous in A.

    Raises:
        ConfigError: the objective needs what this level lacks (see levels.check), or looks at the whole step while
            this is a part of it.
        DataError: log-probabilities of sampled tokens that are NaN, infinite or positive.
    """
    settings = loss_config(config)
    objective = level_1_objective(settings)
    mask = response_mask.bool()
    counts, ranks = _step_counts(mask, config.global_batch_info)
    if whole_step_parts(objective) and int(mask.sum()) < int(counts.tokens):
        check_whole_step(objective)
    batch = _batch(settings, old_log_prob, advantages, mask, rollout_is_weights)
    stats = TokenStats(logprobs=log_prob)
    plan = objective.prepare(batch, stats.detach(), counts=counts)
    out = objective(batch, stats, plan=plan)
    _warn_if_nothing_is_left(objective, mask, out.trust_mask)
    own = _local_means(out.metrics, mask, counts)
    here = mask.sum().clamp(min=1)
    return out.loss * ranks, own | {
        f"actor/{n}": float(v) for n, v in clip_fractions(objective, batch, stats, here).items()
    }


def level_1_objective(settings: HoldfastLossConfig) -> Objective:
    """The configured objective; raises ConfigError for what level 1 cannot give it, or cannot do beside it."""
    higher = {"records": settings.records is not None, "baseline": settings.baseline != "all", "top_k": settings.top_k}
    if asked := [name for name, wanted in higher.items() if wanted]:
        raise ConfigError(
            f"level 1: policy_loss.{', '.join(asked)} would do nothing: use trainer.v1.trainer_mode={TRAINER_MODE}"
        )
    objective = configured_objective(settings)
    check(objective, Given(level=1, rollout=settings.bypass_mode))
    return objective


def clip_fractions(
    objective: Objective, batch: Batch, stats: TokenStats, tokens: Tensor
) -> dict[str, Float[Tensor, ""]]:
    """verl's `pg_clipfrac` and `pg_clipfrac_lower`, shares of `tokens`; empty for a gate that is not PPO's clip.

    pg_clipfrac counts tokens whose clipped term is the larger loss, so none with A = 0 and none of the dual clip, which
    has pg_clipfrac_lower to itself. The objective's own `clip_share` is everything that the gate limits.
    """
    gate = objective.gate
    if not isinstance(gate, Clip):
        return {}
    with torch.no_grad():
        terms = Terms.of(batch, stats.detach(), objective.denominator)
        how = (objective.pool, objective.carrier, objective.denominator)
        counted = terms.mask & (terms.advantages != 0)
        clipped = gated(terms, replace(gate, dual=None), *how).clipped & counted
        both = gated(terms, gate, *how).clipped & counted if gate.dual is not None else clipped
        return {"pg_clipfrac": clipped.sum() / tokens, "pg_clipfrac_lower": (both & ~clipped).sum() / tokens}


def _batch(
    settings: HoldfastLossConfig,
    old_log_prob: Tensor,
    advantages: Tensor,
    mask: Tensor,
    rollout_is_weights: Tensor | None,
) -> Batch:
    return Batch(
        advantages=advantages if rollout_is_weights is None else advantages * rollout_is_weights,
        response_mask=mask,
        old_logprobs=old_log_prob,
        rollout_logprobs=old_log_prob if settings.bypass_mode else None,
    )


def _step_counts(mask: Bool[Tensor, "B T"], info: Mapping[str, Any]) -> tuple[Counts, int]:
    """Counts of the optimiser step as verl knows them, and the ranks over which it averages gradients."""
    ranks = int(info.get("dp_size") or 1)
    tokens, sequences = info.get("batch_num_tokens"), info.get("global_batch_size")
    if tokens is None or sequences is None:
        if ranks > 1:
            raise ConfigError(f"verl gave no counts of the step over {ranks} ranks: use trainer.use_v1=true")
        return Counts.of(mask), ranks
    return Counts(
        sequences=torch.as_tensor(int(sequences), device=mask.device),
        tokens=torch.as_tensor(int(tokens), device=mask.device),
    ), ranks


def _local_means(metrics: Mapping[str, Tensor], mask: Tensor, counts: Counts) -> dict[str, float]:
    """Shares of the step as means of this micro-batch, since verl averages them over the micro-batches."""
    here = Counts.of(mask)
    tokens = counts.tokens / here.tokens.clamp(min=1)
    sequences = counts.sequences / here.sequences.clamp(min=1)
    means = {
        name: float(value * (sequences if name == "masked_sequences" else tokens))
        for name, value in metrics.items()
        if not name.endswith("_max") and not name.startswith(_WHOLE_STEP)
    }
    return {f"actor/{theirs}": means[ours] for theirs, ours in VERL_NAMES.items()} | {
        f"actor/holdfast/{name}": value for name, value in means.items()
    }


def _warn_if_nothing_is_left(objective: Objective, mask: Tensor, trust_mask: Tensor) -> None:
    if bool(mask.any()) and not bool(trust_mask.any()):
        _LOG.warning("%s rejects every token of a micro-batch: its gradient is zero", objective.name)

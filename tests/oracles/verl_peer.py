"""verl's registered losses, rollout correction and advantage estimators, called as its workers call them."""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cases import with_gradient
from holdfast import Batch, TokenStats
from oracles.draws import derivatives

with warnings.catch_warnings():
    # The test session turns warnings into errors; those of a peer's imports are not ours to fix.
    warnings.simplefilter("ignore")
    from verl.trainer.config import AlgoConfig, RolloutCorrectionConfig
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask
    from verl.workers.config import FSDPActorConfig, PolicyLossConfig

_LOSS = {"clip_cov_ratio", "clip_cov_lb", "clip_cov_ub", "kl_cov_ratio", "ppo_kl_coef", "dro_beta"}
_CORRECTION = {
    "rollout_is",
    "rollout_is_threshold",
    "rollout_is_batch_normalize",
    "rollout_rs",
    "rollout_rs_threshold",
    "loss_type",
}


def config(loss_mode: str, settings: dict[str, Any], counts: dict[str, Any]) -> FSDPActorConfig:
    """The actor's configuration, with the counts of the whole step."""
    own = {name: value for name, value in settings.items() if name in _LOSS}
    correction = {name: value for name, value in settings.items() if name in _CORRECTION}
    actor = {name: value for name, value in settings.items() if name not in _LOSS | _CORRECTION}
    scale = {"loss_scale_factor": actor.pop("loss_scale_factor")} if "loss_scale_factor" in actor else {}
    return FSDPActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        policy_loss=PolicyLossConfig(
            loss_mode=loss_mode, rollout_correction=RolloutCorrectionConfig(**correction), **own
        ),
        global_batch_info={"dp_size": 1} | scale | counts,
        **actor,
    )


def token_advantages(batch: Batch) -> Tensor:
    """verl's advantages are per token."""
    mask = batch.response_mask
    return batch.advantages if batch.advantages.ndim == 2 else batch.advantages[:, None].expand(mask.shape).clone()


def correction(settings: dict[str, Any], old: Tensor, rollout: Tensor, mask: Tensor) -> tuple[Tensor | None, Tensor]:
    """(importance weights or None, response mask without what was rejected)."""
    options = {name: value for name, value in settings.items() if name in _CORRECTION and name != "loss_type"}
    weights, kept, _ = compute_rollout_correction_and_rejection_mask(
        old_log_prob=old, rollout_log_prob=rollout, response_mask=mask.long(), **options
    )
    return None if weights is None else weights.batch["rollout_is_weights"], kept


def run_verl(
    loss_mode: str,
    settings: dict[str, Any],
    batch: Batch,
    stats: TokenStats,
    *,
    whole: dict[str, Any] | None = None,
    survivors: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, gradient of log-probabilities, gradient of entropies) of a registered loss.

    In bypass mode the old policy is the rollout. Elsewhere importance weights are made as its trainer makes them.
    `whole` are the counts of the step, by default this batch's; with `survivors` verl counts for itself.
    """
    mask = batch.response_mask
    bypass = loss_mode == "bypass_mode"
    old = batch.rollout_logprobs if bypass else batch.old_logprobs
    assert old is not None and batch.rollout_logprobs is not None
    weights = None
    if "rollout_is" in settings and not bypass:
        weights, _ = correction(settings, old, batch.rollout_logprobs, mask)
    leaves = with_gradient(stats)
    # loss_agg_mode is an argument; the worker reads it from the same configuration.
    counts = whole or {"batch_num_tokens": mask.sum(), "global_batch_size": len(mask)}
    actor = config(loss_mode, settings, {} if survivors else counts)
    loss, _ = core_algos.get_policy_loss_fn(loss_mode)(
        old_log_prob=old,
        log_prob=leaves.logprobs,
        advantages=token_advantages(batch),
        response_mask=mask.long(),
        loss_agg_mode=actor.loss_agg_mode,
        config=actor,
        rollout_is_weights=weights,
    )
    return loss.detach(), *derivatives(loss, leaves)


def run_penalty(settings: dict[str, Any], batch: Batch, stats: TokenStats) -> tuple[Tensor, Tensor, Tensor]:
    """verl's KL loss and entropy bonus: kl_loss_coef · KL − entropy_coeff · H, aggregated like the loss."""
    leaves = with_gradient(stats)
    mode = settings["loss_agg_mode"]
    kl = core_algos.kl_penalty(leaves.logprobs, batch.ref_logprobs, settings["kl_loss_type"])
    loss = settings["kl_loss_coef"] * core_algos.agg_loss(kl, batch.response_mask.long(), mode)
    loss = loss - settings["entropy_coeff"] * core_algos.agg_loss(leaves.entropy, batch.response_mask.long(), mode)
    return loss.detach(), *derivatives(loss, leaves)


def advantages(
    estimator: str, rewards: Tensor, groups: Tensor, mask: Tensor, values: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> Tensor:
    """verl's estimate [B, T] for rewards given at the last response token."""
    places = torch.arange(mask.shape[1])
    last = (mask * (places + 1)).argmax(-1, keepdim=True)
    token_rewards = torch.zeros(mask.shape, dtype=rewards.dtype).scatter(1, last, rewards[:, None])
    options: dict[str, Any] = {"token_level_rewards": token_rewards, "response_mask": mask.long()}
    if estimator == "gae":
        options |= {"values": values, "gamma": gamma, "lam": lam}
    elif estimator == "reinforce_plus_plus":
        options |= {"config": AlgoConfig(gamma=gamma)}
    else:
        options |= {"index": np.array(groups.tolist())}
        if estimator == "grpo, no std":
            estimator, options = "grpo", options | {"norm_adv_by_std_in_grpo": False}
    return core_algos.get_adv_estimator_fn(estimator)(**options)[0]

"""The trainer mode `holdfast_sync` (levels 2 and 3): verl's synchronous trainer around our worker."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import ray
import torch
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.config import omega_conf_to_dataclass

from holdfast.errors import ConfigError
from holdfast.integrations.verl import traps
from holdfast.integrations.verl.baseline import advantages_of_accepted
from holdfast.integrations.verl.config import HoldfastLossConfig, loss_config
from holdfast.integrations.verl.levels import Given, check
from holdfast.integrations.verl.names import PREFIX, TRAINER_MODE, is_ours
from holdfast.integrations.verl.settings import step_objective
from holdfast.integrations.verl.worker import STEP, HoldfastActor
from holdfast.objectives.metrics import merge_metrics
from holdfast.objectives.objective import Objective

_LOG = logging.getLogger(__name__)
_ACTOR_ROLES = (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef)


@register_trainer(TRAINER_MODE)
class HoldfastTrainerSync(PPOTrainerSync):
    """PPOTrainerSync whose actor trains with an objective.

    The rollout's log-probabilities reach the loss; statistics and counts are those of the whole optimiser step.

    Raises ConfigError, before any worker starts, for what the objective needs and this run does not give.
    """

    def __init__(self, config: Any) -> None:
        for finding in traps.find(config):
            _LOG.warning("%s", finding)
        actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
        self.settings = loss_config(actor)
        self.objective = require(config, actor)
        super().__init__(config)

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role in _ACTOR_ROLES:
            if role in self.role_worker_mapping:
                self.role_worker_mapping[role] = ray.remote(HoldfastActor)

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        def estimate() -> Any:
            return super(HoldfastTrainerSync, self)._compute_advantage(batch, metrics)

        if self.settings.baseline == "all":
            return estimate()
        return advantages_of_accepted(self.objective, batch.keys, batch.partition_id, estimate, metrics)

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch.extra_info[STEP] = self.global_steps
        batch = super()._update_actor(batch, metrics)
        metrics.update(derived(metrics))
        if metrics["actor/holdfast/masked_tokens"] > 1 - 1e-6:
            _LOG.warning(
                "step %d: %s rejects every token; its gradient is zero", self.global_steps, self.objective.name
            )
        return batch


def require(config: Any, actor: Any) -> Objective:
    """The objective of a composed config, checked against everything that this level can give it."""
    settings = loss_config(actor)
    if not is_ours(settings.loss_mode):
        raise ConfigError(
            f"trainer.v1.trainer_mode={TRAINER_MODE} with policy_loss.loss_mode={settings.loss_mode}: the mode trains "
            f"with Holdfast's objectives only, loss_mode={PREFIX}_<row> or {PREFIX}"
        )
    if actor.strategy not in ("fsdp", "fsdp2"):
        raise ConfigError(
            f"trainer.v1.trainer_mode={TRAINER_MODE} with actor.strategy={actor.strategy}: it runs on fsdp and fsdp2; "
            "other engines have level 1, trainer_mode=sync"
        )
    _refuse(config, settings)
    objective = step_objective(actor)
    given = Given(
        level=3 if settings.top_k else 2,
        rollout=bool(config.actor_rollout_ref.rollout.calculate_log_probs),
        entropy=True,
        reference=bool(actor.use_kl_loss),
        top_k=settings.top_k,
    )
    check(objective, given)
    if settings.top_k and objective.normalize.over == "accepted":
        raise ConfigError(
            "policy_loss.top_k=true with normalize over 'accepted': what the top-K accepts is known only after the "
            "gradient's own forward pass; normalize over 'all'"
        )
    return objective


def _refuse(config: Any, settings: HoldfastLossConfig) -> None:
    """Raise ConfigError for settings of verl that contradict ours."""
    correction = config.algorithm.get("rollout_correction") or {}
    for name, instead in (("rollout_is", "tis, mis, icepop"), ("rollout_rs", "trm, geo_rs, ser, opsm")):
        if correction.get(name):
            raise ConfigError(
                f"algorithm.rollout_correction.{name}={correction[name]} would correct a second time, outside the "
                f"objective: leave it out and join a row to the objective ({instead})"
            )
    if bool(correction.get("bypass_mode")) != settings.bypass_mode:
        raise ConfigError(
            f"algorithm.rollout_correction.bypass_mode={correction.get('bypass_mode')} and policy_loss.bypass_mode="
            f"{settings.bypass_mode}: set both, or neither"
        )
    if settings.baseline == "accepted" and (settings.bypass_mode or settings.top_k):
        raise ConfigError(
            "policy_loss.baseline=accepted needs the verdict before the update, from old log-probabilities: "
            "not with bypass_mode (old is the rollout) or top_k (its bounds come with the update)"
        )
    if settings.top_k and config.actor_rollout_ref.model.get("use_fused_kernels"):
        raise ConfigError("policy_loss.top_k=true needs logits, which model.use_fused_kernels=true never makes")
    parallel = config.actor_rollout_ref.actor.get("ulysses_sequence_parallel_size") or 1
    if settings.top_k and parallel > 1:
        raise ConfigError(
            f"policy_loss.top_k=true needs whole sequences on each rank: ulysses_sequence_parallel_size={parallel} "
            "cuts them, set it to 1"
        )


def derived(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Effective sample size and effective tokens of the step, from its sums."""
    prefix = "actor/holdfast/"
    names = [f"{base}_{moment}" for base in ("weight", "coefficient") for moment in ("mean", "square_mean")]
    shares = {name: torch.tensor(float(metrics[prefix + name])) for name in names}
    whole = merge_metrics([shares])
    return {prefix + name: float(whole[name]) for name in ("ess", "effective_tokens")}

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

from holdfast.integrations.verl.baseline import advantages_of_accepted
from holdfast.integrations.verl.check.require import require
from holdfast.integrations.verl.config import loss_config
from holdfast.integrations.verl.names import TRAINER_MODE
from holdfast.integrations.verl.worker import STEP, HoldfastActor
from holdfast.objectives.metrics import merge_metrics

_LOG = logging.getLogger(__name__)
_ACTOR_ROLES = (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef)


@register_trainer(TRAINER_MODE)
class HoldfastTrainerSync(PPOTrainerSync):
    """PPOTrainerSync whose actor trains with an objective.

    The rollout's log-probabilities reach the loss; statistics and counts are those of the whole optimiser step.

    Raises ConfigError, before any worker starts, for what the objective needs and this run does not give.
    """

    def __init__(self, config: Any) -> None:
        actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
        self.settings = loss_config(actor)
        self.objective = require(config, actor)
        super().__init__(config)

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role in _ACTOR_ROLES:
            if role in self.role_worker_mapping:
                self.role_worker_mapping[role] = ray.remote(HoldfastActor)

    def _build_replay_buffer(self) -> Any:
        # verl tells its synchronous trainer from the asynchronous ones by this word: an asynchronous one keeps the
        # batches of several steps, fetches prompts one by one and writes every trained batch into its checkpoints.
        self.trainer_mode = "sync"
        self.parameter_sync_step = self.config.trainer.v1.get("sync", {}).get("parameter_sync_step", 1)
        return super()._build_replay_buffer()

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch = super()._compute_advantage(batch, metrics)
        if self.settings.baseline == "accepted":
            where, algorithm = f"step {self.global_steps}", self.config.algorithm
            metrics.update(advantages_of_accepted(self.objective, batch.keys, batch.partition_id, algorithm, where))
        return batch

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch.extra_info[STEP] = self.global_steps
        batch = super()._update_actor(batch, metrics)
        metrics.update(derived(metrics))
        if metrics["actor/holdfast/masked_tokens"] > 1 - 1e-6:
            _LOG.warning(
                "step %d: %s rejects every token; its gradient is zero", self.global_steps, self.objective.name
            )
        return batch


def derived(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Effective sample size and effective tokens of the step, from its sums."""
    prefix = "actor/holdfast/"
    names = [f"{base}_{moment}" for base in ("weight", "coefficient") for moment in ("mean", "square_mean")]
    shares = {name: torch.tensor(float(metrics[prefix + name])) for name in names}
    whole = merge_metrics([shares])
    return {prefix + name: float(whole[name]) for name in ("ess", "effective_tokens")}

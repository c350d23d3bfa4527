"""The trainer mode `holdfast_sync` (levels 2 and 3): verl's synchronous trainer around our worker."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.config import omega_conf_to_dataclass

from holdfast.guard.settings import GuardSettings
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
        folder = Path(config.trainer.default_local_dir)
        given = self.settings.guard
        self.guard = VerlGuard(dict(given), folder, self.settings.records) if given else None

    def _compute_metrics(self, batch: Any, metrics: dict[str, Any], *others: Any, **named: Any) -> Any:
        done = super()._compute_metrics(batch, metrics, *others, **named)
        if self.guard is not None and self.guard.look(self.global_steps, metrics):
            _LOG.warning("the guard halts the run after step %d, with a checkpoint", self.global_steps)
            self._save_checkpoint()
            self.total_training_steps = self.global_steps  # verl's loop ends with the last step
        return done

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


class VerlGuard:
    """One for a run: looks at the metrics of each step before verl logs them, and adds the alarms to them.

    `settings` is the table of the loss's `guard`; rollouts are looked at where the loss writes `records`. Evidence is
    in `folder`/guard.
    """

    def __init__(self, settings: dict[str, Any], folder: Path, records: str | None) -> None:
        from holdfast.guard.guard import Guard

        rollouts = None if records is None else Path(records)
        self.guard = Guard(GuardSettings.of(settings), folder / "guard", "verl", rollouts=rollouts, after=time.time())

    def look(self, step: int, metrics: dict[str, Any]) -> bool:
        """Add what there is to say of a step to its metrics; whether the run is to halt."""
        self.guard.numbers(step, {name: number(value) for name, value in metrics.items()})
        look = self.guard.look(step)
        for finding in look.fresh:
            _LOG.warning("guard, %s, step %d: %s. %s", finding.severity, step, finding.headline, finding.fix)
        if look.page is not None:
            _LOG.warning("guard: the evidence is in %s", look.page)
        for text in look.said:
            _LOG.warning(text)
        metrics.update(look.values)
        return look.halt


def number(value: Any) -> Any:
    """A metric as a plain number, where it is one: verl also logs numpy's and torch's."""
    single = isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.numel() == 1)
    return value.item() if single else value


def derived(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Effective sample size and effective tokens of the step, from its sums."""
    prefix = "actor/holdfast/"
    names = [f"{base}_{moment}" for base in ("weight", "coefficient") for moment in ("mean", "square_mean")]
    shares = {name: torch.tensor(float(metrics[prefix + name])) for name in names}
    whole = merge_metrics([shares])
    return {prefix + name: float(whole[name]) for name in ("ess", "effective_tokens")}

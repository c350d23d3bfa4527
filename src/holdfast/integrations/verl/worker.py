"""The training worker of level 2: before each optimiser step it looks at the whole step, on all ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.device import get_device_id
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from holdfast.integrations.verl.config import HoldfastLossConfig, loss_config
from holdfast.integrations.verl.gather import plan_of
from holdfast.integrations.verl.records import rollouts_of
from holdfast.integrations.verl.settings import step_objective
from holdfast.integrations.verl.step import (
    ROW,
    SEQUENCE,
    StepLoss,
    batch_of,
    on_device,
    sequence_ids,
    stats_of,
    validate,
)
from holdfast.objectives.whole_step import whole_step_parts
from holdfast.rollout.store import write_rollouts
from holdfast.types import Batch, TokenStats

STEP = "holdfast_step"
"""The trainer's step, counted from 1, in the batch's extra fields."""


class HoldfastTrainingWorker(TrainingWorker):
    """verl's training worker with an objective instead of a loss function."""

    def configure(self, actor: Any) -> None:
        """Take the objective and our settings from the actor's configuration."""
        self.settings: HoldfastLossConfig = loss_config(actor)
        self.objective = step_objective(actor)
        self.updates = 0
        self.fresh = False

    def train_mini_batch(self, data: Any) -> Any:
        """Every update of one batch of rollouts; before the first the current policy is the old one."""
        self.updates = 0
        # In bypass mode verl hands the rollout's log-probabilities over as old: they are not this policy's.
        self.fresh = not self.settings.bypass_mode
        return super().train_mini_batch(data)

    def train_batch(self, data: Any) -> Any:
        """One optimiser step: statistics of the whole step first, then verl's own loop over micro-batches."""
        group = self.engine.get_data_parallel_group()
        step = int(tu.get(data, key=STEP))
        data[ROW] = torch.arange(data.batch_size[0])
        data[SEQUENCE] = sequence_ids(data)
        batch = on_device(batch_of(data), get_device_id())
        validate(batch, self.objective, f"step {step}, rank {self.engine.get_data_parallel_rank()}")
        stats = self._current(data, batch) if whole_step_parts(self.objective) else None
        loss = StepLoss(
            objective=self.objective,
            plan=plan_of(self.objective, batch, stats, step - 1, group),
            ranks=self.engine.get_data_parallel_size(),
            recording=self.settings.records is not None and self.engine.is_mp_src_rank_with_outputs(),
        )
        self.set_loss_fn(loss)
        # verl's engine asks for entropies, and hands over logits, where the batch says so.
        if "entropy" in self.objective.needs:
            tu.assign_non_tensor(data, calculate_entropy=True)
        tu.assign_non_tensor(data, distillation_use_topk=self.settings.top_k)
        output = super().train_batch(data)
        if self.settings.records is not None and loss.recording:
            self._record(Path(self.settings.records), data, loss, step)
        self.updates += 1
        self.fresh = False
        return output

    def _current(self, data: Any, batch: Batch) -> TokenStats:
        """The current policy on this rank's share: the old policy if nothing has moved yet, else a forward pass."""
        if self.fresh and "entropy" not in self.objective.needs:
            assert batch.old_logprobs is not None
            return TokenStats(logprobs=batch.old_logprobs)
        copy = data.copy()
        tu.pop(copy, key="distillation_use_topk", default=None)
        tu.assign_non_tensor(copy, calculate_entropy="entropy" in self.objective.needs)
        config, model = self.engine_config, self.model_config
        settings = {
            "use_remove_padding": model.get("use_remove_padding", False),
            "use_dynamic_bsz": config.use_dynamic_bsz,
            "max_token_len_per_gpu": config.max_token_len_per_gpu,
            "micro_batch_size_per_gpu": config.micro_batch_size_per_gpu,
            "use_fused_kernels": config.use_fused_kernels,
        }
        tu.assign_non_tensor(copy, **settings)
        with self.engine.eval_mode(disable_auto_offload=True):
            output = self.engine.infer_batch(copy)["model_output"]
        return stats_of(output, copy)

    def _record(self, folder: Path, data: Any, loss: StepLoss, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        rank = self.engine.get_data_parallel_rank()
        name = f"step_{step:06d}_rank_{rank:04d}_update_{self.updates:02d}.parquet"
        write_rollouts(folder / name, rollouts_of(data, loss.seen, step))


class HoldfastActor(ActorRolloutRefWorker):
    """verl's actor worker around `HoldfastTrainingWorker`; the reference policy keeps verl's own."""

    actor_worker_cls = HoldfastTrainingWorker

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        """Build the models as verl does, then give the actor its objective."""
        super().init_model()
        self.actor.configure(omega_conf_to_dataclass(self.config.actor))

"""TRL's GRPOTrainer with a Holdfast objective as its loss: three overrides, one forward pass more where needed."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from holdfast.errors import ConfigError, nearest
from holdfast.integrations.trl import whole_step
from holdfast.integrations.trl.head import install
from holdfast.integrations.trl.records import Trained, rollouts_of
from holdfast.integrations.trl.settings import resolve, warn_of_idle_parts, warn_of_truncated_support
from holdfast.objectives.metrics import merge_metrics
from holdfast.objectives.objective import Objective, Plan
from holdfast.objectives.whole_step import whole_step_parts
from holdfast.rollout.store import write_rollouts
from holdfast.types import Batch, LossOutput, TokenStats

_MODEL_INPUTS = tuple(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)[8:]
_RESUMED = "HoldfastObjective"


@dataclasses.dataclass
class _Step:
    """One optimiser step in progress: its plan, the next micro-batch expected, and what was trained so far."""

    first: int
    size: int
    plan: Plan
    measured: bool
    trained: list[Trained] = dataclasses.field(default_factory=list)

    @property
    def next(self) -> int:
        return self.first + len(self.trained)


class HoldfastGRPOTrainer(GRPOTrainer):
    """GRPOTrainer whose loss is `objective`: a preset name such as "trm+sspo+kl_cov", or an Objective.

    Everything but the loss and the advantages stays TRL's: data, generation, rewards, tools, PEFT, checkpoints, logs.
    Counts and whole-batch statistics are those of the whole optimiser step over all micro-batches and ranks. Metrics
    go to TRL's log as "holdfast/…"; every `rollouts_every` optimiser steps (0: never) the step's sequences are
    written, token by token, to OUTPUT_DIR/rollouts for `holdfast audit`. Weights are taken to have sampled what was
    generated under them, unless `rollout_func` has a `policy_version` that says otherwise. `lm_head` names who turns
    hidden states into log-probabilities: "trl", or "holdfast" for our kernels.

    Raises:
        ConfigError: GRPOConfig sets what the objective decides, or TRL cannot give what the objective needs.
        DataError: in training, for missing or non-finite log-probabilities of sampled tokens.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        *,
        objective: str | Objective,
        rollouts_every: int = 1,
        lm_head: str = "trl",
        **options: Any,
    ) -> None:
        self.objective, args = resolve(objective, args or GRPOConfig())
        self._refuse_silent_engine(args, options)
        if rollouts_every < 0:
            raise ConfigError(f"rollouts_every = {rollouts_every}: must be at least 0 (0 writes none)")
        if lm_head not in ("trl", "holdfast"):
            raise ConfigError(f"lm_head = {lm_head!r}: {nearest(str(lm_head), ('trl', 'holdfast'))}")
        warn_of_truncated_support(self.objective, args)
        warn_of_idle_parts(self.objective, args)
        self.rollouts_every = rollouts_every
        self._step_in_progress: _Step | None = None
        self._rewards = torch.zeros(0)
        super().__init__(model, reward_funcs, args, train_dataset, **options)
        if lm_head == "holdfast":
            bare = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
            install(bare, self.temperature, self.args.cast_lm_head_to_fp32)

    def _refuse_silent_engine(self, args: GRPOConfig, options: dict[str, Any]) -> None:
        records = args.use_vllm or options.get("rollout_func") is not None
        stock = type(self)._generate_single_turn is GRPOTrainer._generate_single_turn
        if "rollout_logprobs" in self.objective.needs and stock and not records:
            raise ConfigError(
                f"objective {self.objective.name!r} compares with the log-probabilities that the engine sampled with; "
                "transformers' generate records none: set GRPOConfig(use_vllm=True), pass a rollout_func, or choose a "
                "preset whose explain() shows no rollout policy, such as 'grpo+kl_cov'"
            )

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        weighted = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
        self._rewards = torch.where(rewards.isnan().all(dim=1), torch.nan, weighted)
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's generation with the objective's advantages, and who is who: keys that survive shuffle and split."""
        output = super()._generate_and_score_completions(inputs)
        training = self.model.training
        group = self.num_generations if training else self.num_generations_eval
        mask = whole_step.batch_of(output | {"sequence_ids": None}).response_mask
        rows, length = mask.shape
        everyone = whole_step.everywhere(mask, self.accelerator)
        own = slice(rows * self.accelerator.process_index, rows * (self.accelerator.process_index + 1))
        advantages = whole_step.advantages_of(self.objective, self._rewards, group, everyone)
        micro_batches = self.state.global_step * self.args.gradient_accumulation_steps
        generation = micro_batches // (self.args.steps_per_generation * self.num_iterations)
        version = getattr(self.rollout_func, "policy_version", self.state.global_step)
        numbers = torch.arange(len(everyone), device=mask.device) + (generation * len(everyone) if training else 0)
        return output | {
            "advantages": advantages[own, :length],
            "rewards": self._rewards[own],
            "sequence_ids": numbers[own],
            "group_ids": numbers[own] // group,
            "generated_at": torch.full_like(numbers[own], self.state.global_step),
            "weight_versions": torch.full_like(numbers[own], version),
        }

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if not self.model.training:
            return self._evaluation_loss(model, inputs)
        step = self._step_in_progress
        if step is None or step.next != self._step:
            step = self._step_in_progress = self._begin_step()
        stats, auxiliary = self._score(model, inputs)
        size = len(inputs["advantages"])
        first = size * (self._step - step.first)
        plan = step.plan.select(slice(first, first + size))
        output = self.objective(whole_step.batch_of(inputs), stats, plan=plan)
        step.trained.append(Trained(inputs, stats.detach(), _without_graph(output)))
        if len(step.trained) == step.size:
            self._finish_step(step)
        # Ranks are averaged by DDP and FSDP; shares add up.
        loss = output.loss * self.accelerator.num_processes
        return loss if auxiliary is None else loss + self.router_aux_loss_coef * auxiliary / step.size

    def _score(self, model: Any, inputs: dict[str, Any]) -> tuple[TokenStats, Tensor | None]:
        """The current policy on one micro-batch, and a mixture of experts' balancing loss."""
        logprobs, entropy, auxiliary = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{name: inputs[name] for name in _MODEL_INPUTS if name in inputs},
        )
        if "entropy" not in self.objective.needs:
            entropy = entropy.detach()
        return TokenStats(logprobs=logprobs, entropy=entropy), auxiliary

    def _evaluation_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """An evaluation batch is a whole of its own; ranks are averaged by TRL."""
        batch = whole_step.batch_of(inputs)
        whole_step.check(batch, self.objective, "evaluation")
        stats, _ = self._score(model, inputs)
        output = self.objective(batch, stats)
        self._log(_across_ranks([output.metrics], self.accelerator), "eval")
        return output.loss

    def _begin_step(self) -> _Step:
        """Look at all micro-batches of the optimiser step that starts now, before the first gradient."""
        start, size = self._step % self.args.steps_per_generation, self.current_gradient_accumulation_steps
        assert self._buffered_inputs is not None
        micro_batches = self._buffered_inputs[start : start + size]
        batch = whole_step.join([whole_step.batch_of(inputs) for inputs in micro_batches])
        rank = self.accelerator.process_index
        whole_step.check(batch, self.objective, f"step {self.state.global_step + 1}, rank {rank}")
        if self.state.global_step and self._step == 0:
            self.objective = _resumed(self.objective, self.state.stateful_callbacks.get(_RESUMED))
        stats = None
        if whole_step_parts(self.objective):
            stats = self._look(batch, micro_batches)
        plan = whole_step.plan_of(self.objective, batch, stats, self.accelerator, self.state.global_step)
        return _Step(first=self._step, size=size, plan=plan, measured=stats is not None)

    def _look(self, batch: Batch, micro_batches: list[dict[str, Any]]) -> TokenStats:
        """The current policy on the whole step, without gradient; TRL's own pass serves while no update lies between.

        TRL's pass has no entropies, so an objective that needs them gets a pass of its own.
        """
        current = int(micro_batches[0]["generated_at"][0]) == self.state.global_step
        if current and batch.old_logprobs is not None and "entropy" not in self.objective.needs:
            return TokenStats(logprobs=batch.old_logprobs)
        with torch.no_grad():
            return whole_step.join([self._score(self.model, inputs)[0] for inputs in micro_batches])

    def _finish_step(self, step: _Step) -> None:
        """Metrics of the whole step into TRL's log, its sequences into the store, adaptive coefficients forward."""
        self._step_in_progress = None
        metrics = _across_ranks([trained.output.metrics for trained in step.trained], self.accelerator)
        if not step.measured:
            metrics.pop("covariance_share")
        self._log(metrics, "train")
        number = self.state.global_step + 1
        tokens = int(step.plan.counts.tokens)
        if tokens and float(metrics["masked_tokens"]) > 1 - 0.5 / tokens:
            warnings.warn(
                f"step {number}: {self.objective.name!r} rejected every sequence, so the policy term has no gradient; "
                "if this lasts, the thresholds are too tight for this engine: holdfast.advise proposes others from the "
                f"rollouts in {self.args.output_dir}",
                stacklevel=2,
            )
        if self.rollouts_every and number % self.rollouts_every == 0:
            self._write_rollouts(step, number)
        moved = self.objective.after_step(metrics)
        if moved != self.objective:
            self.objective = moved
            self.state.stateful_callbacks[_RESUMED] = moved.to_dict()

    def _write_rollouts(self, step: _Step, number: int) -> None:
        folder = Path(self.args.output_dir or ".") / "rollouts"
        folder.mkdir(parents=True, exist_ok=True)
        many = self.accelerator.num_processes > 1
        name = f"step_{number:04d}_rank_{self.accelerator.process_index}" if many else f"step_{number:04d}"
        write_rollouts(
            folder / f"{name}.parquet",
            (
                rollout
                for trained in step.trained
                for rollout in rollouts_of(trained, self.args, self._tokenizer, self.eos_token_ids, number)
            ),
        )

    def _log(self, metrics: dict[str, Tensor], mode: str) -> None:
        """Add to what TRL logs next; `entropy` has TRL's own name, which dashboards already show."""
        idle = () if self.objective.weights else ("ess", "weight_mean", "weight_max")
        for name, value in metrics.items():
            if name not in idle and not name.endswith("_square_mean"):
                self._metrics[mode][name if name == "entropy" else f"holdfast/{name}"].append(float(value))


def _across_ranks(shares: list[Any], accelerator: Any) -> dict[str, Tensor]:
    """The metrics of a whole step from the shares of its micro-batches here and on the other ranks."""
    here = merge_metrics(shares)
    if accelerator.num_processes == 1:
        return here
    names = sorted(here)
    table = accelerator.gather(torch.stack([here[name].float() for name in names])).view(-1, len(names))
    return merge_metrics([dict(zip(names, row.unbind(), strict=True)) for row in table])


def _without_graph(output: LossOutput) -> LossOutput:
    return dataclasses.replace(output, loss=output.loss.detach())


def _resumed(objective: Objective, saved: dict[str, Any] | None) -> Objective:
    """Adaptive coefficients as the checkpoint left them, where it was made with this objective."""
    if saved is None or saved["name"] != objective.name:
        return objective
    return dataclasses.replace(objective, penalties=Objective.from_dict(saved).penalties)

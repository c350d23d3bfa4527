"""TRL's GRPOTrainer with a Holdfast objective as its loss: three overrides, one forward pass more where needed."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

import holdfast
from holdfast.errors import ConfigError, DataError
from holdfast.integrations.trl import card, contract, top_k, whole_step
from holdfast.integrations.trl.arguments import Choices, by_name, default_config
from holdfast.integrations.trl.config import telling
from holdfast.integrations.trl.head import install
from holdfast.integrations.trl.metrics import log_names, trl_numbers
from holdfast.integrations.trl.records import Trained, records_file, rollouts_of
from holdfast.integrations.trl.settings import (
    resolve,
    warn_of_idle_parts,
    warn_of_length_weights,
    warn_of_other_distribution,
)
from holdfast.objectives.metrics import merge_metrics
from holdfast.objectives.objective import Objective, Plan
from holdfast.objectives.whole_step import whole_step_parts
from holdfast.rollout.store import write_rollouts
from holdfast.types import STATS_BOUNDS, Batch, LossOutput, TokenStats

_MODEL_INPUTS = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
    "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip
_IDLE_NUMBERS = tuple(f"sampling/importance_sampling_ratio/{of}" for of in ("min", "mean", "max"))
"""TRL's numbers of weights that are not used here."""


@dataclasses.dataclass
class _Step:
    """One optimiser step in progress: its plan, the next micro-batch expected, and what was trained so far."""

    first: int
    size: int
    plan: Plan
    measured: bool
    trained: list[Trained] = dataclasses.field(default_factory=list)
    auxiliary: list[Tensor] = dataclasses.field(default_factory=list)

    @property
    def next(self) -> int:
        return self.first + len(self.trained)


class HoldfastGRPOTrainer(GRPOTrainer):
    """GRPOTrainer whose loss is `objective`: a preset name such as "trm+sspo+kl_cov", or an Objective.

    Everything but the loss and the advantages stays TRL's: data, generation, rewards, tools, PEFT, checkpoints, logs;
    arguments are GRPOTrainer's, in its order, and four more by name, which may stand in a `HoldfastGRPOConfig` instead.
    Counts and whole-batch statistics are those of the whole optimiser step over all micro-batches and ranks. Every
    `rollouts_every` optimiser steps (0: never) the step's sequences are written, token by token, to
    OUTPUT_DIR/_rollouts/RUN for `holdfast audit`. Weights are taken to have sampled what was generated under them,
    unless `rollout_func` has a `policy_version` that says otherwise. `lm_head` names who turns hidden states into
    log-probabilities: "trl", or "holdfast" for our kernels. `top_logprobs` = K takes the K likeliest tokens from vLLM,
    or from a `rollout_func` that returns `logprob_token_ids`: what they prove (`kl_lower`, `tv_lower`, `tv_upper`) is
    there for masks, metrics and records.

    Raises:
        ConfigError: GRPOConfig sets what the objective decides, or TRL cannot give what the objective needs.
        DataError: in training, for missing or non-finite log-probabilities of sampled tokens.
    """

    _tag_names = ["trl", "grpo", "holdfast"]  # noqa: RUF012 (as TRL has it)
    _paper = {}  # noqa: RUF012

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        *others: Any,
        objective: str | Objective | None = None,
        rollouts_every: int | None = None,
        lm_head: str | None = None,
        top_logprobs: int | None = None,
        **options: Any,
    ) -> None:
        config: Any = default_config(model) if args is None else args
        own = Choices.of(config, objective, rollouts_every, lm_head, top_logprobs)
        self.rollouts_every, self.top_logprobs = own.rollouts_every, own.top_logprobs
        given = {"beta": config.beta, "entropy_coef": config.entropy_coef}
        self.objective, config = resolve(own.objective, config, self.top_logprobs)
        options = by_name(others, options)
        self._refuse_silent_engine(config, options)
        warn_of_other_distribution(self.objective, config)
        warn_of_idle_parts(self.objective, config)
        warn_of_length_weights(self.objective)
        self.run = ""
        self._step_in_progress: _Step | None = None
        self._rewards = torch.zeros(0)
        self._reported: list[Any] | None = None
        about = dataclasses.asdict(own) | {"version": holdfast.__version__}
        about |= {"objective": self.objective.to_dict(), "explain": self.objective.explain()}
        self._name = f"{self.objective.name} (Holdfast {holdfast.__version__})"
        super().__init__(model, reward_funcs, telling(config, about, given), train_dataset, **options)
        contract.require_trainer(self)
        # Before 1.15 TRL gives the entropy a gradient only for a bonus of its own.
        self._entropy_bonus_enabled = "entropy" in self.objective.needs
        self.add_callback(card.Remember(self))
        if own.lm_head == "holdfast":
            bare = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
            install(bare, self.temperature, getattr(self.args, "cast_lm_head_to_fp32", False))
        if self.top_logprobs:
            top_k.refuse_sharded(self.accelerator)
            if config.use_vllm:
                top_k.report_likeliest(self.vllm_generation, self.top_logprobs)

    def create_model_card(self, model_name: Any = None, dataset_name: Any = None, tags: Any = None) -> None:
        """TRL's model card, and the objective with its numbers."""
        super().create_model_card(model_name, dataset_name, tags)
        if self.is_world_process_zero():
            card.add_objective(Path(self.args.output_dir or ".") / "README.md", self.objective)

    def _refuse_silent_engine(self, args: GRPOConfig, options: dict[str, Any]) -> None:
        records = args.use_vllm or options.get("rollout_func") is not None
        stock = type(self)._generate_single_turn is GRPOTrainer._generate_single_turn
        if self.top_logprobs and stock and not records:
            raise ConfigError(
                f"top_logprobs = {self.top_logprobs}: transformers' generate reports no log-probabilities; use "
                "GRPOConfig(use_vllm=True), or a rollout_func that returns logprob_token_ids"
            )
        if "rollout_logprobs" in self.objective.needs and stock and not records:
            raise ConfigError(
                f"objective {self.objective.name!r} compares with the log-probabilities that the engine sampled with; "
                "transformers' generate records none: set GRPOConfig(use_vllm=True), pass a rollout_func, or choose a "
                "preset whose explain() shows no rollout policy, such as 'grpo+kl_cov'"
            )

    def _generate(self, prompts: Any) -> Any:
        """TRL's generation; a rollout function's likeliest tokens give way to the sampled one, and are kept."""
        output = list(super()._generate(prompts))
        completion_ids, logprobs, extra = output[1], output[4], output[5]
        if logprobs is not None and "logprob_token_ids" in extra:
            output[4] = logprobs = top_k.sampled(completion_ids, logprobs, extra["logprob_token_ids"])
        self._reported = logprobs
        return tuple(output)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        weighted = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
        self._rewards = torch.where(rewards.isnan().all(dim=1), torch.nan, weighted)
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's generation with the objective's advantages, and who is who: keys that survive shuffle and split."""
        output = super()._generate_and_score_completions(inputs)
        contract.require_inputs(output)
        training = self.model.training
        for name in _IDLE_NUMBERS:
            self._metrics["train" if training else "eval"].pop(name, None)
        group = self.num_generations if training else self.num_generations_eval
        mask = whole_step.batch_of(output | {"sequence_ids": None}).response_mask
        rows, length = mask.shape
        everyone = whole_step.everywhere(mask, self.accelerator)
        own = slice(rows * self.accelerator.process_index, rows * (self.accelerator.process_index + 1))
        advantages = whole_step.advantages_of(self.objective, self._rewards, group, everyone)
        self._show_advantages(advantages.sum(dim=1) / everyone.sum(dim=1).clamp(min=1))
        micro_batches = self.state.global_step * self.args.gradient_accumulation_steps
        generation = micro_batches // (self.args.steps_per_generation * self.num_iterations)
        version = getattr(self.rollout_func, "policy_version", self.state.global_step)
        numbers = torch.arange(len(everyone), device=mask.device) + (generation * len(everyone) if training else 0)
        return (
            output
            | self._top(mask)
            | {
                "advantages": advantages[own, :length],
                "rewards": self._rewards[own],
                "sequence_ids": numbers[own],
                "group_ids": numbers[own] // group,
                "generated_at": torch.full_like(numbers[own], self.state.global_step),
                "weight_versions": torch.full_like(numbers[own], version),
            }
        )

    def _show_advantages(self, advantages: Tensor) -> None:
        """The objective's in TRL's table of completions, in the place of those that TRL has just written there."""
        shown = self._logs["advantages"]
        for _ in range(min(len(shown), len(advantages))):
            shown.pop()
        shown.extend(advantages.tolist())

    def _top(self, mask: Tensor) -> dict[str, Tensor]:
        """The likeliest tokens of this generation, as tensors that TRL shuffles and splits like the others."""
        reported, self._reported = self._reported, None
        if not self.top_logprobs:
            return {}
        if not any(isinstance(one, top_k.Sampled) for row in reported or () for one in row):
            raise DataError(
                f"top_logprobs = {self.top_logprobs}, but this generation reports no likeliest tokens: a rollout_func "
                "returns logprobs and logprob_token_ids as [sequences][tokens][K]; or set top_logprobs = 0"
            )
        assert reported is not None
        ids, values = top_k.tables(reported, self.top_logprobs, mask.shape[1], mask.device)
        return {"top_ids": ids, "top_logprobs": values}

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
        step.auxiliary += [] if auxiliary is None else [auxiliary.detach()]
        if len(step.trained) == step.size:
            self._finish_step(step)
        # Ranks are averaged by DDP and FSDP; shares add up.
        loss = output.loss * self.accelerator.num_processes
        return loss if auxiliary is None else loss + self.router_aux_loss_coef * auxiliary / step.size

    def _score(self, model: Any, inputs: dict[str, Any]) -> tuple[TokenStats, Tensor | None]:
        """The current policy on one micro-batch, and a mixture of experts' balancing loss."""
        unwrapped = self.accelerator.unwrap_model(model)
        with top_k.hidden_states(unwrapped, "top_ids" in inputs) as hidden:
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
        contract.require_gradient(self.objective.needs, logprobs=logprobs, entropy=entropy)
        stats = TokenStats(logprobs=logprobs, entropy=entropy)
        if "top_ids" in inputs:
            mask, wide = whole_step.batch_of(inputs).response_mask, getattr(self.args, "cast_lm_head_to_fp32", False)
            with self.accelerator.autocast():
                stats = top_k.with_bounds(stats, hidden[0], unwrapped, self.temperature, inputs, mask, wide)
        return stats, auxiliary

    def _evaluation_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """An evaluation batch is a whole of its own; ranks are averaged by TRL."""
        batch = whole_step.batch_of(inputs)
        whole_step.check(batch, self.objective, "evaluation")
        stats, _ = self._score(model, inputs)
        plan = self.objective.prepare(batch, stats.detach(), counts=whole_step.counts_of(batch.response_mask))
        output = self.objective(batch, stats, plan=plan)
        metrics = _across_ranks([output.metrics], self.accelerator)
        self._log(log_names(metrics, self.objective, plan.quartiles), "eval")
        loss = output.loss.detach() / self.accelerator.num_processes
        self._log(trl_numbers(self.objective, batch, stats, plan, loss, self.accelerator), "eval")
        return output.loss

    def _begin_step(self) -> _Step:
        """Look at all micro-batches of the optimiser step that starts now, before the first gradient."""
        start, size = self._step % self.args.steps_per_generation, self.current_gradient_accumulation_steps
        assert self._buffered_inputs is not None
        micro_batches = self._buffered_inputs[start : start + size]
        batch = whole_step.join([whole_step.batch_of(inputs) for inputs in micro_batches])
        rank = self.accelerator.process_index
        whole_step.check(batch, self.objective, f"step {self.state.global_step + 1}, rank {rank}")
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
        if (
            current
            and batch.old_logprobs is not None
            and not self.objective.needs & ({"entropy"} | STATS_BOUNDS.keys())
        ):
            return TokenStats(logprobs=batch.old_logprobs)
        with torch.no_grad():
            return whole_step.join([self._score(self.model, inputs)[0] for inputs in micro_batches])

    def _finish_step(self, step: _Step) -> None:
        """Metrics of the whole step into TRL's log, its sequences into the store, adaptive coefficients forward."""
        self._step_in_progress = None
        metrics = _across_ranks([trained.output.metrics for trained in step.trained], self.accelerator)
        if not step.measured:
            metrics.pop("covariance_share")
        self._log(log_names(metrics, self.objective, step.plan.quartiles), "train")
        self._log(self._trl_numbers(step), "train")
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
            self.state.stateful_callbacks[card.STATE] = card.entry(moved, self.run)

    def _trl_numbers(self, step: _Step) -> dict[str, float]:
        batch = whole_step.join([whole_step.batch_of(trained.inputs) for trained in step.trained])
        stats = whole_step.join([trained.stats for trained in step.trained])
        loss = torch.stack([trained.output.loss for trained in step.trained]).sum()
        found = trl_numbers(self.objective, batch, stats, step.plan, loss, self.accelerator)
        if step.auxiliary:
            here = torch.stack(step.auxiliary).mean()
            found["aux_loss"] = float(self.accelerator.gather(here).mean())
        return found

    def _write_rollouts(self, step: _Step, number: int) -> None:
        rank = self.accelerator.process_index if self.accelerator.num_processes > 1 else None
        file = records_file(self.args.output_dir, self.run, number, rank)
        file.parent.mkdir(parents=True, exist_ok=True)
        ends = contract.eos_ids(self)
        write_rollouts(
            file,
            (
                rollout
                for trained in step.trained
                for rollout in rollouts_of(trained, self.args, self._tokenizer, ends, number)
            ),
            run=self.run,
        )

    def _log(self, numbers: Any, mode: str) -> None:
        """Add to what TRL logs next."""
        for name, value in numbers.items():
            self._metrics[mode][name].append(float(value))


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

"""The typed configuration of a training run: sections, ranges and defaults; unknown keys are refused.

A run is one TOML file. Every key can be overridden on the command line (`--optimizer.learning_rate 1e-4`), and the
resolved configuration is written into the run folder.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Literal

from pydantic import Field, model_validator

from holdfast.train.settings.engine_tables import AsyncConfig, EngineConfig, SamplingConfig
from holdfast.train.settings.guard_table import GuardConfig
from holdfast.train.settings.section import OpenSection, Section

TABLES = ("jsonl", "csv", "parquet", "huggingface")
"""Tasks whose problems are the rows of a table, which a run can go through one by one."""


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of a number that lies nearest to the wanted one."""
    return min((n for n in range(1, number + 1) if number % n == 0), key=lambda n: abs(n - wanted))


class TaskConfig(OpenSection):
    """Where problems and rewards come from; further keys are the task's own options (`entries = 12`)."""

    name: str = Field(
        default="ledger", description="a built-in task, or jsonl, csv, parquet, huggingface, reasoning_gym"
    )
    reward: str | dict[str, float] | None = Field(
        default=None,
        description="module:function or file.py:function instead of the task's own reward, or several with weights "
        '({"mine.py:right" = 1.0, "mine.py:brief" = 0.2, "task" = 1.0}); signatures: docs/tasks.md',
    )
    reward_timeout: float = Field(
        default=10.0, gt=0.0, description="seconds after which such a function is killed and the reward is 0"
    )
    reward_workers: int = Field(default=2, ge=1, le=256, description="processes that run such a function")
    reward_memory_gib: float = Field(
        default=8.0, ge=0.0, description="memory of each such process, and of each that it starts; 0: no limit"
    )

    @model_validator(mode="after")
    def _rewards_have_weights(self) -> TaskConfig:
        if isinstance(self.reward, dict) and not (self.reward and all(map(math.isfinite, self.reward.values()))):
            raise ValueError(
                f'reward = {self.reward!r}: functions with finite weights are needed, as in {{ "mine.py:right" = 1.0 }}'
            )
        return self


class ModelConfig(Section):
    """A Hugging Face causal language model, or a tiny Qwen3 over the task's characters where `source` is absent."""

    source: str | None = Field(
        default=None, description='model folder, hub name, GGUF file or "smollm2"; absent: a tiny model from scratch'
    )
    hidden: int = Field(default=96, ge=8, le=8192, description="width of the tiny model")
    layers: int = Field(default=3, ge=1, le=128, description="depth of the tiny model")
    heads: int = Field(default=4, ge=1, le=128, description="attention heads of the tiny model")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="what the weights are kept in")
    autocast: bool = Field(
        default=False,
        description="multiply in bfloat16 over float32 master weights; with `source` on a GPU that has it: true",
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"] = Field(
        default="auto", description="the trainer's attention; auto: what transformers chooses, sdpa where it can"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU if there is one")
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations in the backward pass instead of keeping them"
    )
    unpadded: bool = Field(
        default=True, description="compute neither padding nor a group's prompt twice, where the model's attention can"
    )
    compile: bool = Field(
        default=False, description="compile the layers with torch.compile: minutes once, then faster steps"
    )
    memory_check: bool = Field(
        default=True, description="refuse a run that needs more memory than is free, by the estimate (docs/memory.md)"
    )
    chat: bool = Field(default=False, description="wrap prompts in the tokenizer's chat template")

    @model_validator(mode="after")
    def _float32_under_autocast(self) -> ModelConfig:
        if self.autocast and self.dtype != "float32":
            raise ValueError(
                f'autocast multiplies in bfloat16 over float32 weights, but dtype = "{self.dtype}"; '
                'nearest valid value: dtype = "float32"'
            )
        return self

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.source is None and self.hidden % (2 * self.heads):
            valid = [n for n in range(1, self.hidden // 2 + 1) if self.hidden % (2 * n) == 0]
            closest = min(valid, key=lambda n: abs(n - self.heads)) if valid else 1
            raise ValueError(
                f"heads = {self.heads} does not split hidden = {self.hidden} into even parts; "
                f"nearest valid value: {closest}"
            )
        return self


class LoraConfig(Section):
    """Train low-rank adapters through PEFT and leave the model's own weights as they are."""

    rank: int = Field(default=0, ge=0, le=4096, description="0: train all weights")
    alpha: float = Field(default=32.0, gt=0.0, description="the adapters' product is scaled by alpha / rank")
    targets: list[str] = Field(
        default_factory=lambda: ["all-linear"], min_length=1, description="names of linear layers, or all-linear"
    )


class WarmStartConfig(Section):
    """Supervised phase before reinforcement learning: clean solutions, then those of a sloppy teacher."""

    clean_steps: int = Field(default=0, ge=0, description="updates on correct solutions")
    sloppy_steps: int = Field(default=0, ge=0, description="updates on solutions with wrong steps")
    error_rate: float = Field(default=0.1, ge=0.0, le=1.0, description="share of wrong steps of the sloppy teacher")
    learning_rate: float = Field(default=2e-3, gt=0.0, le=1.0, description="peak learning rate of the clean phase")
    sloppy_learning_rate: float = Field(default=5e-4, gt=0.0, le=1.0, description="learning rate of the sloppy phase")
    batch_size: int = Field(default=64, ge=1, description="solutions per update")


class ObjectiveConfig(OpenSection):
    """The objective by preset name, parts joined with "+"; further keys override its defaults (`delta = 0.3`)."""

    preset: str = Field(default="ppo", min_length=1)


class OptimizerConfig(Section):
    """AdamW with a linear warm-up, then a constant or falling learning rate."""

    kind: Literal["adamw", "adamw8bit"] = Field(
        default="adamw", description="adamw8bit: torchao's, 2 bytes of state a weight instead of 8"
    )
    learning_rate: float = Field(
        default=2e-4, gt=0.0, le=1.0, description="the highest; with `model.source`: 1e-06, with LoRA 1e-05"
    )
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="what the learning rate does between warm-up and the last step"
    )
    min_ratio: float = Field(
        default=0.0, ge=0.0, le=1.0, description="share of the learning rate that linear and cosine fall to"
    )
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    beta2: float = Field(default=0.95, ge=0.0, lt=1.0)
    epsilon: float = Field(default=1e-8, gt=0.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    max_grad_norm: float = Field(default=1.0, gt=0.0)


class BatchConfig(Section):
    """How many rollouts a step samples and how they are split into optimiser steps and micro-batches."""

    prompts: int = Field(default=16, ge=1, description="problems per step")
    group_size: int = Field(default=8, ge=1, description="responses per problem")
    minibatches: int = Field(default=1, ge=1, description="optimiser steps per pass over the rollouts")
    epochs: int = Field(default=1, ge=1, description="passes over the rollouts")
    micro_batch_tokens: int = Field(default=4096, ge=1, description="padded tokens per forward pass; changes no number")
    max_prompt_tokens: int | None = Field(
        default=None, ge=1, description="longer prompts are skipped; absent: what fits"
    )
    without_replacement: bool = Field(
        default=False,
        description="every problem of a table once before any comes again, shuffled anew each time; with "
        "`model.source` and a table: true",
    )

    @model_validator(mode="after")
    def _minibatches_divide(self) -> BatchConfig:
        sequences = self.prompts * self.group_size
        if sequences % self.minibatches:
            closest = nearest_divisor(sequences, self.minibatches)
            raise ValueError(
                f"minibatches = {self.minibatches} does not divide {self.prompts} prompts x {self.group_size} "
                f"responses = {sequences} sequences; nearest valid value: {closest}"
            )
        return self

    @property
    def sequences(self) -> int:
        """Rollouts per step."""
        return self.prompts * self.group_size

    @property
    def updates(self) -> int:
        """Optimiser steps per rollout batch."""
        return self.minibatches * self.epochs


class EvaluationConfig(Section):
    """Rewards of the trainer's own policy on held-out problems."""

    every: int = Field(default=10, ge=0, description="steps between evaluations; 0: only at the start and the end")
    problems: int = Field(default=128, ge=1)
    samples: int = Field(default=1, ge=1, description="responses to each problem; several give pass@k")
    greedy: bool = Field(default=True, description="also decode greedily")
    cache_gib: float = Field(
        default=2.0, gt=0.0, description="room for keys and values where the trainer's own model is evaluated"
    )


class CheckpointConfig(Section):
    """When the state is written, and how many of them are kept."""

    every: int = Field(default=20, ge=0, description="steps between checkpoints; 0: only at the end")
    keep: int = Field(default=2, ge=1, description="newest checkpoints that stay")
    best: bool = Field(
        default=False,
        description="also keep the one with the highest held-out reward; with `model.source`: true",
    )
    push_to_hub: str | None = Field(
        default=None,
        pattern=r"^[\w.-]+/[\w.-]+$",
        description="owner/name on the Hugging Face hub that gets the best model, else the last, when the run is done",
    )
    hub_private: bool = Field(default=True, description="create that repository as a private one")


class LogConfig(Section):
    """What a step leaves behind besides its line in metrics.jsonl."""

    rollouts_every: int = Field(default=1, ge=0, description="steps between parquet files of rollouts; 0: none")
    report_every: int = Field(
        default=10, ge=0, description="steps between writings of report.html, at most 2 % of the time; 0: at the end"
    )
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    project: str = Field(default="holdfast", description="project name given to the trackers")


class RunConfig(Section):
    """One training run."""

    steps: int = Field(default=60, ge=0, description="rollout batches")
    data_epochs: float | None = Field(
        default=None,
        gt=0.0,
        description="passes over the task's table after which the run ends, if `steps` has not ended it before",
    )
    seed: int = Field(default=0, ge=0, lt=2**31)
    threads: int = Field(
        default=1, ge=1, le=1024, description="CPU threads of torch; same number, same results; on a GPU: up to 8"
    )
    task: TaskConfig = Field(default_factory=TaskConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    lora: LoraConfig = Field(default_factory=LoraConfig)
    warm_start: WarmStartConfig = Field(default_factory=WarmStartConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    asynchronous: AsyncConfig = Field(default_factory=AsyncConfig, alias="async")
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    batch: BatchConfig = Field(default_factory=BatchConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    log: LogConfig = Field(default_factory=LogConfig)
    guard: GuardConfig = Field(default_factory=GuardConfig)

    @model_validator(mode="after")
    def _who_is_never_idle_never_sleeps(self) -> RunConfig:
        if self.asynchronous.staleness and self.engine.sleep:
            raise ValueError(
                f"engine.sleep = true and async.staleness = {self.asynchronous.staleness}: an asynchronous engine "
                "writes while the trainer updates; nearest valid value: engine.sleep = false"
            )
        return self

    @model_validator(mode="after")
    def _masks_have_a_size(self) -> RunConfig:
        if not self.engine.sampling_mask:
            return self
        if not self.sampling.truncates:
            raise ValueError(
                "engine.sampling_mask = true, and all of the vocabulary can be sampled: nothing to report; leave it "
                "out, or set sampling.top_k, top_p or min_p"
            )
        if self.engine.kind != "embedded" and not self.sampling.top_k:
            raise ValueError(
                f'engine.sampling_mask = true with engine.kind = "{self.engine.kind}" and sampling.top_k = 0: vLLM '
                "reports masks of at most top_k tokens; set sampling.top_k, for example 1024 beside top_p"
            )
        return self

    @model_validator(mode="after")
    def _experts_that_can_be_replayed(self) -> RunConfig:
        if self.engine.replay_experts and self.engine.kind == "server":
            raise ValueError(
                'engine.replay_experts = true with engine.kind = "server": experts are read from engines in the '
                'trainer\'s process; nearest valid value: engine.kind = "vllm"'
            )
        if self.engine.replay_experts and self.model.compile:
            raise ValueError(
                "engine.replay_experts = true and model.compile = true: compiled layers choose their own experts; "
                "nearest valid value: model.compile = false"
            )
        return self

    @model_validator(mode="after")
    def _one_kind_of_lag(self) -> RunConfig:
        if self.asynchronous.staleness and self.engine.lag:
            raise ValueError(
                f"engine.lag = {self.engine.lag} and async.staleness = {self.asynchronous.staleness}: an asynchronous "
                "engine is behind by itself; nearest valid value: engine.lag = 0"
            )
        return self

    @model_validator(mode="after")
    def _brake_can_act(self) -> RunConfig:
        if self.guard.brake == "off":
            return self
        batch, guard, sampling = self.batch, self.guard, self.sampling
        least, why = guard.fewest_held_out()
        if guard.brake == "controller" and batch.group_size < 2:
            raise ValueError(
                'guard.brake = "controller" with batch.group_size = 1: a response is compared with the others to its '
                "prompt, and there are none; nearest valid value: 2"
            )
        if batch.prompts <= least:
            raise ValueError(
                f"guard.brake: batch.prompts = {batch.prompts} leaves nothing to train on beside the {least} prompts "
                f"that it takes {why}; nearest valid value: {least + 1}"
            )
        if self.held_out < least:
            raise ValueError(
                f"guard.brake_share = {guard.brake_share:g} of {batch.prompts} prompts holds out {self.held_out}, and "
                f"it takes {least} {why}; nearest valid value: {math.ceil(100 * least / batch.prompts) / 100:g}"
            )
        if sampling.trainer_support == "raw" and (sampling.temperature != 1.0 or sampling.truncates):
            raise ValueError(
                'guard.brake with sampling.trainer_support = "raw": the trainer then scores another policy than the '
                'one that answers; nearest valid value: "processed"'
            )
        trained = (batch.prompts - self.held_out) * batch.group_size
        if trained % batch.minibatches:
            closest = nearest_divisor(trained, batch.minibatches)
            raise ValueError(
                f"batch.minibatches = {batch.minibatches} does not divide the {trained} sequences that guard.brake "
                f"leaves to train on; nearest valid value: {closest}"
            )
        return self

    @property
    def held_out(self) -> int:
        """Prompts of a step that the brake keeps out of its update."""
        if self.guard.brake == "off":
            return 0
        return min(max(1, round(self.guard.brake_share * self.batch.prompts)), self.batch.prompts - 1)

    @model_validator(mode="after")
    def _tables_only(self) -> RunConfig:
        asked = {
            "data_epochs": self.data_epochs is not None,
            "batch.without_replacement": self.batch.without_replacement,
        }
        for key, wanted in asked.items():
            if wanted and self.task.name not in TABLES:
                raise ValueError(
                    f"{key}: task {self.task.name!r} makes up its problems and has no table to go through; leave it "
                    f"out, or take one of {', '.join(TABLES)}"
                )
        replaced = "without_replacement" in self.batch.model_fields_set and not self.batch.without_replacement
        if self.data_epochs and replaced:
            raise ValueError(
                f"data_epochs = {self.data_epochs:g} counts passes over the table, which "
                "batch.without_replacement = false does not make; nearest valid value: true"
            )
        return self

    @model_validator(mode="after")
    def _device_of_an_engine_of_ours(self) -> RunConfig:
        if self.asynchronous.device != "auto" and self.engine.kind != "embedded":
            raise ValueError(
                f'async.device = "{self.asynchronous.device}" with engine.kind = "{self.engine.kind}": only the '
                'embedded engine is put on a device by its process; nearest valid value: "auto"'
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain values as they are written to config.toml: TOML has no null, so absent keys stay absent."""
        derived = {"steps"} if self.data_epochs is not None and "steps" not in self.model_fields_set else None
        return self.model_dump(mode="json", exclude_none=True, by_alias=True, exclude=derived)

    def warm_start_key(self) -> str:
        """Names the model that the warm start produces: equal for two runs exactly when they may share it."""
        parts = self.model_dump(mode="json", include={"seed", "threads", "task", "model", "warm_start"})
        # Only what comes after it knows of these.
        for key in ("unpadded", "compile", "gradient_checkpointing", "attention", "memory_check"):
            del parts["model"][key]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

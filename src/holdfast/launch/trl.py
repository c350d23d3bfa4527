"""The run file with TRL: what becomes of each key in GRPOConfig, and the run itself."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from holdfast.errors import ConfigError, nearest
from holdfast.launch.data import counted, held_out_problems, say_doubts, single_turn_task, training_problems
from holdfast.launch.runfile import Honoured, RunFile, refuse_unhonoured, without_brake
from holdfast.rollout.engine import Completion, Engine
from holdfast.tasks.base import Problem
from holdfast.tasks.verify import make_scorer, rewards_of
from holdfast.train.keep.hub import push_model
from holdfast.train.policy.model import use_attention
from holdfast.train.sampling.data import PromptSource
from holdfast.train.sampling.engines import build_engine, embedded
from holdfast.train.sampling.sampler import sampling_of
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.device import check_attention, check_device, claim_local_gpu
from holdfast.train.settings.objective import objective_of
from holdfast.train.settings.seeds import derive_seed
from holdfast.train.setup import build_model

HONOURED: Honoured = {
    "steps": None, "data_epochs": None, "seed": None, "threads": None,
    "task.*": None, "model.*": None, "engine.*": None, "objective.*": None,
    "optimizer.*": None, "batch.*": None, "checkpoint.*": None, "log.*": None, "guard.*": None,
    **without_brake("TRL")[0],
    "engine.exact_kl": (False,), "engine.replay_experts": (False,),
    "async.staleness": (0,),
    "sampling.temperature": None, "sampling.max_tokens": None,
    "sampling.top_p": (1.0,), "sampling.top_k": (0,), "sampling.min_p": (0.0,),
    "sampling.trainer_support": ("processed",),
    "model.unpadded": (False,),
    "evaluation.every": None, "evaluation.problems": None, "evaluation.greedy": (False,), "evaluation.samples": (1,),
    "checkpoint.best": (False,),
    "warm_start.clean_steps": (0,), "warm_start.sloppy_steps": (0,),
}  # fmt: skip
_SUPPORT = "TRL scores every token over the whole vocabulary, whatever the engine could sample"
REASONS = {
    **without_brake("TRL")[1],
    "model.unpadded": "TRL computes padding",
    "engine.exact_kl": "a rollout for TRL carries the likeliest tokens at most: engine.top_logprobs",
    "engine.replay_experts": "TRL's forward pass chooses its own experts",
    "engine.*": "vLLM is the engine here; its settings are the vllm_* keys of [trl], and top_logprobs there",
    "sampling.top_p": _SUPPORT,
    "sampling.top_k": _SUPPORT,
    "sampling.min_p": _SUPPORT,
    "sampling.trainer_support": "TRL's log-probabilities are those of the sampling temperature",
    "evaluation.greedy": "TRL evaluates by sampling",
    "evaluation.samples": "TRL's evaluation reports the mean reward alone",
    "checkpoint.best": "TRL keeps the newest checkpoints; its own load_best_model_at_end is a key of [trl]",
    "warm_start.*": "no supervised phase: warm-start with --backend local and give its model folder as model.source",
    "async.*": "TRL generates between its steps",
}


def grpo_settings(run: RunFile, folder: Path, world: int = 1) -> dict[str, Any]:
    """Keywords of GRPOConfig for this run on `world` processes.

    Raises:
        ConfigError: a written key that TRL cannot honour, a split that comes out uneven, or a key of [trl] that the run
            file decides.
    """
    config, own = run.config, run.own
    vllm = bool(own.get("use_vllm"))
    honoured = {k: v for k, v in HONOURED.items() if not (vllm and k.startswith("engine."))}
    refuse_unhonoured(config, "trl", honoured, REASONS)
    single_turn_task(config, "trl")
    settings = {"output_dir": str(folder)} | _shape(config, world) | _optimizer(config) | _bookkeeping(config)
    settings |= {
        "seed": config.seed,
        "max_completion_length": config.sampling.max_tokens,
        "temperature": config.sampling.temperature,
        "bf16": config.model.dtype == "bfloat16" or config.model.autocast,
        "gradient_checkpointing": config.model.gradient_checkpointing,
        "torch_compile": config.model.compile,
        "shuffle_dataset": False,
    }
    if clash := sorted(own.keys() & settings.keys()):
        raise ConfigError(f"[trl] {', '.join(clash)}: decided by the run file for every backend; leave out of [trl]")
    return settings | dict(own)


def show(run: RunFile, folder: Path) -> str:
    """What `--dry-run` prints: the objective, then the call that the run makes."""
    run = replace(run, config=counted(run.config))
    settings = grpo_settings(run, folder, _world())
    lines = [f"    {name}={value!r}," for name, value in settings.items()]
    return "\n".join([objective_of(run.config).explain(), "", "GRPOConfig(", *lines, ")"])


def run(run: RunFile, folder: Path) -> int:
    """Train with TRL; rollouts are in FOLDER/_rollouts, the model in FOLDER/model."""
    import torch

    claim_local_gpu()
    run = replace(run, config=counted(run.config))
    torch.set_num_threads(run.config.threads)
    trainer = build_trainer(run, folder)
    trainer.train()
    last = trainer.state.global_step
    if not any("eval_reward" in record and record["step"] == last for record in trainer.state.log_history):
        trainer.evaluate()
    trainer.save_model(str(folder / "model"))
    hub = run.config.checkpoint
    if hub.push_to_hub and trainer.is_world_process_zero():
        told = push_model(folder / "model", hub.push_to_hub, private=hub.hub_private, message="Holdfast with TRL")
        print(told)
    # A rank that exits with Gloo's threads at work may abort, and torchrun then calls a finished run failed.
    trainer.accelerator.end_training()
    return 0


def build_trainer(run: RunFile, folder: Path) -> Any:
    """The plug-in's trainer with the run file's model, problems, rewards and engine."""
    from holdfast.integrations.trl import GuardCallback, HoldfastGRPOTrainer

    config = run.config
    claim_local_gpu()
    check_device(config)
    check_attention(config.model)
    settings = grpo_settings(run, folder, _world())
    task = single_turn_task(config, "trl")
    # Weights stay in float32; bfloat16 is what TRL computes in.
    model, tokenizer = build_model(_with_float32(config), task.alphabet)
    tokenizer.padding_side = "left"
    source = PromptSource(task, tokenizer, max_tokens=_longest_prompt(config, model), chat=config.model.chat)

    def draw(seed: int, count: int, split: str) -> tuple[Problem, ...]:
        return source.draw(seed, count, split).problems

    training = training_problems(config, draw, lambda: [problem for problem, _ in source.table])
    chosen = [training, held_out_problems(config, draw)]
    say_doubts(task, *chosen)
    problems = [problem for part in chosen for problem in part]
    scorer = make_scorer(
        task,
        config.task.reward,
        timeout=config.task.reward_timeout,
        workers=config.task.reward_workers,
        memory_gib=config.task.reward_memory_gib,
    )

    def reward(completions: list[Any], number: list[int], **others: Any) -> list[float]:
        texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
        asked = [problems[index] for index in number]
        return rewards_of(scorer(asked, texts), asked, texts)

    rollouts = None if run.own.get("use_vllm") else EngineRollouts(config, source, folder, model)
    use_attention(model, config.model)
    trainer = HoldfastGRPOTrainer(
        model,
        reward,
        _grpo_config(settings),
        _dataset(chosen[0], 0, source),
        eval_dataset=_dataset(chosen[1], len(chosen[0]), source),
        processing_class=tokenizer,
        objective=objective_of(config),
        rollouts_every=config.log.rollouts_every * config.batch.updates,
        top_logprobs=None if run.own.get("use_vllm") else config.engine.top_logprobs,
        rollout_func=rollouts,
    )
    if config.guard.on:
        GuardCallback(**asdict(config.guard.settings())).attach(trainer)
    return trainer


class EngineRollouts:
    """TRL's rollout function over the engine of the run file, which says what it sampled with.

    TRL's own `generate` records no log-probabilities, so nothing that compares with the engine could be trained on it.
    """

    def __init__(self, config: RunConfig, source: PromptSource, folder: Path, model: Any) -> None:
        self.config, self.source = config, source
        self.engine: Engine = build_engine(config, model, source.tokenizer, folder / "engine")
        self.judge: Engine = embedded(model, source.tokenizer, precision="float32")

    @property
    def policy_version(self) -> int:
        """The optimiser step whose weights the engine samples with."""
        return self.engine.policy_version

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        """One response to each prompt, drawn as `holdfast train` draws it; evaluation samples from the trainer."""
        training, step = trainer.model.training, trainer.state.global_step
        ids = [self.source.encode_shown(prompt) for prompt in prompts]
        engine, purpose = (self.engine, "sample") if training else (self.judge, "evaluate")
        if step or not training:
            engine.sync(trainer.accelerator.unwrap_model(trainer.model), step)
        first = len(ids) * trainer.accelerator.process_index
        first += step // self.config.batch.updates * self.config.batch.sequences if training else 0
        completions = engine.generate(
            ids,
            sampling_of(self.config),
            seed=derive_seed(self.config.seed, purpose),
            sequence_ids=range(first, first + len(ids)),
            return_top=self.config.engine.top_logprobs,
        )
        output = {
            "prompt_ids": [list(row) for row in ids],
            "completion_ids": [list(completion.token_ids) for completion in completions],
            "logprobs": [completion.logprobs.tolist() for completion in completions],
        }
        return output | (_likeliest(completions) if self.config.engine.top_logprobs else {})


def _likeliest(completions: Sequence[Completion]) -> dict[str, Any]:
    """The engine's likeliest tokens as TRL's rollout functions report them: the sampled one is always among them."""
    logprobs: list[list[list[float]]] = []
    token_ids: list[list[list[int]]] = []
    for completion in completions:
        assert completion.top_ids is not None and completion.top_logprobs is not None
        ids, values = completion.top_ids.tolist(), completion.top_logprobs.tolist()
        for token, own, row, found in zip(completion.token_ids, completion.logprobs.tolist(), ids, values, strict=True):
            if token not in row:
                row.append(token)
                found.append(own)
        token_ids.append(ids)
        logprobs.append(values)
    return {"logprobs": logprobs, "logprob_token_ids": token_ids}


def _shape(config: RunConfig, world: int) -> dict[str, Any]:
    """Sequences per step, generation and forward pass; TRL counts micro-batches in sequences."""
    batch = config.batch
    sequences, rest = divmod(batch.sequences // batch.minibatches, world)
    if rest:
        raise ConfigError(
            f"{batch.sequences // batch.minibatches} sequences an optimiser step do not split over {world} processes: "
            "change batch.prompts, batch.group_size or batch.minibatches"
        )
    if batch.group_size < 2:
        raise ConfigError("backend 'trl' cannot honour batch.group_size = 1: GRPO compares responses to one prompt")
    room = batch.micro_batch_tokens // (config.sampling.max_tokens + (batch.max_prompt_tokens or 0))
    each = max(size for size in range(1, sequences + 1) if sequences % size == 0 and (size <= room or size == 1))
    return {
        "max_steps": config.steps * batch.updates,
        "per_device_train_batch_size": each,
        "gradient_accumulation_steps": sequences // each,
        "steps_per_generation": sequences // each * batch.minibatches,
        "num_iterations": batch.epochs,
        "num_generations": batch.group_size,
        "per_device_eval_batch_size": each,
        "num_generations_eval": 1,
    }


def _optimizer(config: RunConfig) -> dict[str, Any]:
    settings = config.optimizer
    return {
        "learning_rate": settings.learning_rate,
        **_schedule(config),
        "warmup_steps": settings.warmup_steps,
        "adam_beta1": settings.beta1,
        "adam_beta2": settings.beta2,
        "adam_epsilon": settings.epsilon,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
    }


def _schedule(config: RunConfig) -> dict[str, Any]:
    """transformers' names; its linear schedule ends at 0 and nowhere else."""
    settings = config.optimizer
    optim = {"adamw": {}, "adamw8bit": {"optim": "adamw_torch_8bit"}}[settings.kind]
    if settings.schedule == "constant":
        return optim | {"lr_scheduler_type": "constant_with_warmup"}
    if settings.min_ratio == 0.0:
        return optim | {"lr_scheduler_type": settings.schedule}
    if settings.schedule == "linear":
        raise ConfigError(
            f"backend 'trl' cannot honour optimizer.min_ratio = {settings.min_ratio:g} with schedule = 'linear', which "
            "ends at 0 there; nearest valid value: 0, or schedule = 'cosine'"
        )
    return optim | {
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": settings.min_ratio},
    }


def _bookkeeping(config: RunConfig) -> dict[str, Any]:
    updates, every, keep = config.batch.updates, config.evaluation.every, config.checkpoint
    settings: dict[str, Any] = {
        "logging_steps": 1,
        "report_to": list(config.log.trackers) or "none",
        "project": config.log.project,
        "eval_on_start": True,
        "eval_strategy": "steps" if every else "no",
        "save_strategy": "steps" if keep.every else "no",
        "save_total_limit": keep.keep,
    }
    settings |= {"eval_steps": every * updates} if every else {}
    return settings | ({"save_steps": keep.every * updates} if keep.every else {})


def _grpo_config(settings: Mapping[str, Any]) -> Any:
    from holdfast.integrations.trl import HoldfastGRPOConfig

    known = {field.name for field in dataclasses.fields(HoldfastGRPOConfig)}
    for name in settings:
        if name not in known:
            raise ConfigError(f"[trl] {name}: GRPOConfig has no such field; {nearest(name, known)}")
    if "wandb" in settings["report_to"]:
        os.environ.setdefault("WANDB_PROJECT", settings["project"])
    try:
        return HoldfastGRPOConfig(**settings)
    except ConfigError as error:
        raise ConfigError(f"[trl]: {error}") from None
    except ValueError as error:
        raise ConfigError(f"TRL refuses these settings: {error}") from None


def _dataset(problems: Sequence[Problem], first: int, source: PromptSource) -> Any:
    from datasets import Dataset

    rows = [{"prompt": source.shown(problem), "number": first + index} for index, problem in enumerate(problems)]
    return Dataset.from_list(rows)


def _longest_prompt(config: RunConfig, model: Any) -> int:
    context = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    room = context - config.sampling.max_tokens
    return room if config.batch.max_prompt_tokens is None else min(room, config.batch.max_prompt_tokens)


def _with_float32(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"model": config.model.model_copy(update={"dtype": "float32"})})


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))

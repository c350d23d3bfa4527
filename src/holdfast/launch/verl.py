"""The run file with verl: Hydra overrides for `verl.trainer.main_ppo`, the tables it reads, and the run itself."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from holdfast.errors import ConfigError
from holdfast.integrations.verl.levels import Given, check
from holdfast.integrations.verl.names import TRAINER_MODE, advantage_overrides, hydra_value, loss_overrides
from holdfast.launch.data import counted, held_out_problems, say_doubts, single_turn_task, training_problems
from holdfast.launch.runfile import Honoured, RunFile, refuse_unhonoured, without_brake
from holdfast.launch.verl_reward import reward_settings, verl_row
from holdfast.rollout.pretrained import model_folder
from holdfast.tasks.base import Problem
from holdfast.tasks.records import Records
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.objective import objective_of

HONOURED: Honoured = {
    "steps": None, "data_epochs": None, "seed": None,
    "task.*": None, "objective.*": None, "optimizer.*": None, "batch.*": None,
    "checkpoint.*": None, "checkpoint.best": (False,), "checkpoint.push_to_hub": (), "checkpoint.hub_private": (),
    "evaluation.*": None, "evaluation.samples": (1,), "optimizer.schedule": ("constant", "cosine"),
    "model.source": None, "model.dtype": None, "model.autocast": None, "model.chat": (True,),
    "model.gradient_checkpointing": None,
    "engine.precision": ("float32", "bfloat16"), "engine.lag": (0,), "engine.exact_kl": (False,),
    "engine.top_logprobs": (0,),
    "async.staleness": (0,),
    "sampling.temperature": None, "sampling.max_tokens": None,
    "sampling.top_p": (1.0,), "sampling.top_k": (0,), "sampling.min_p": (0.0,),
    "sampling.trainer_support": ("processed",),
    "warm_start.clean_steps": (0,), "warm_start.sloppy_steps": (0,),
    "log.rollouts_every": (0, 1), "log.trackers": None, "log.project": None, "guard.*": None,
    **without_brake("verl")[0],
}  # fmt: skip
_SUPPORT = "verl scores every token over the whole vocabulary, whatever the engine could sample"
REASONS = {
    **without_brake("verl")[1],
    "threads": "Ray places its workers",
    "model.attention": "verl's is a key of [verl]: actor_rollout_ref.model.override_config.attn_implementation",
    "model.unpadded": "verl's switch is a key of [verl]: actor_rollout_ref.model.use_remove_padding",
    "model.compile": "verl's switch is a key of [verl]: actor_rollout_ref.actor.use_torch_compile",
    "model.*": "verl loads a Hugging Face model: give model.source",
    "model.chat": "verl wraps every prompt in the chat template",
    "engine.precision": "the engine is vLLM or SGLang; further numerics are keys of [verl]",
    "engine.lag": "the synchronous trainer hands over the weights before every step",
    "engine.compile": "the engine is vLLM or SGLang, which compile on their own",
    "engine.exact_kl": "verl's engines report one log-probability per token; the top-K level is policy_loss.top_k",
    "engine.top_logprobs": "verl's engines report one log-probability per token; the top-K level is policy_loss.top_k",
    "sampling.top_p": _SUPPORT,
    "sampling.top_k": _SUPPORT,
    "sampling.min_p": _SUPPORT,
    "sampling.trainer_support": "verl's log-probabilities are those of the sampling temperature",
    "warm_start.*": "no supervised phase: warm-start with --backend local and give its model folder as model.source",
    "async.*": "Holdfast's trainer mode is synchronous",
    "log.rollouts_every": "every update is written, or none",
    "evaluation.samples": "verl's is a key of [verl]: actor_rollout_ref.rollout.val_kwargs.n",
    "optimizer.schedule": "verl's FSDP workers have no other",
    "checkpoint.best": "verl keeps the newest checkpoints",
    "checkpoint.*": "verl's checkpoints are sharded: merge one with verl.model_merger, then hf upload",
}

_ACTOR = "actor_rollout_ref.actor"
_ROLLOUT = "actor_rollout_ref.rollout"


def overrides(run: RunFile, folder: Path) -> list[str]:
    """Everything that `main_ppo` is told, in Hydra's grammar.

    Raises:
        ConfigError: a written key that verl cannot honour, a missing one that it needs, an objective that our trainer
            mode cannot train, or a key of [verl] that the run file decides.
    """
    config = run.config
    refuse_unhonoured(config, "verl", HONOURED, REASONS)
    _require(config)
    single_turn_task(config, "verl")
    objective = objective_of(config)
    needs_reference = "ref_logprobs" in objective.needs
    check(objective, Given(level=2, rollout=True, entropy=True, reference=True))
    settings = {
        **_data(config, folder),
        **_policy(config),
        **_engine(config),
        **_bookkeeping(config, folder),
        f"{_ACTOR}.use_kl_loss": needs_reference,
        # The objective has its own penalties; verl only has to bring the reference's log-probabilities.
        **({f"{_ACTOR}.kl_loss_coef": 0.0} if needs_reference else {}),
        f"{_ACTOR}.calculate_entropy": "entropy" in objective.needs,
    }
    ours: dict[str, Any] = {"records": str(folder.absolute() / "rollouts")} if config.log.rollouts_every else {}
    if config.guard.on:
        ours |= {f"guard.{name}": value for name, value in asdict(config.guard.settings()).items()}
    loss = [
        *loss_overrides(config.objective.preset, config.objective.options),
        *(f"+{_ACTOR}.policy_loss.{name}={hydra_value(value)}" for name, value in ours.items()),
        *advantage_overrides(objective),
    ]
    own = {f"{_ROLLOUT}.name": "vllm"} | flat(run.own)
    decided = {line.partition("=")[0].lstrip("+") for line in loss} | {key.lstrip("+") for key in settings}
    if clash := sorted(key for key in own if key.lstrip("+") in decided):
        raise ConfigError(f"[verl] {', '.join(clash)}: decided by the run file for every backend; leave out of [verl]")
    return [*(f"{key}={hydra_value(value)}" for key, value in (settings | own).items()), *loss]


def show(run: RunFile, folder: Path) -> str:
    """What `--dry-run` prints: a command to copy and, where verl is installed, what its own config makes of it."""
    lines = overrides(replace(run, config=counted(run.config)), folder)
    command = " \\\n    ".join(["python3 -m verl.trainer.main_ppo", *map(shlex.quote, lines)])
    return "\n\n".join([command, *composed_report(lines)])


def composed_report(lines: list[str]) -> list[str]:
    """The objective and every trap found in verl's composed config; a sentence where verl is not installed.

    Raises:
        ConfigError: verl's config has no such key, or refuses a value.
    """
    if find_spec("verl") is None:
        return ["(verl is not installed here, so its own configuration was not composed)"]
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from holdfast.integrations.verl.check.composed import composed, report

    try:
        return list(report(composed(lines)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"verl refuses this configuration: {error}") from None


def run(run: RunFile, folder: Path) -> int:
    """Write the tables, then start verl as a process of its own; its exit code is ours."""
    if find_spec("verl") is None:
        raise ConfigError("backend 'verl' needs verl, which is not installed here: see docs/verl.md, or use --dry-run")
    run = replace(run, config=counted(run.config))
    lines = overrides(run, folder)
    print("\n\n".join(composed_report(lines)), flush=True)
    write_tables(run.config, folder)
    return subprocess.run([sys.executable, "-m", "verl.trainer.main_ppo", *lines], check=False).returncode


def write_tables(config: RunConfig, folder: Path) -> None:
    """FOLDER/data/train.parquet and held_out.parquet: every step's problems in their order, in verl's columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    task = single_turn_task(config, "verl")
    (folder / "data").mkdir(parents=True, exist_ok=True)

    def draw(seed: int, count: int, split: str) -> tuple[Problem, ...]:
        return tuple(task.problems(seed, count, split))

    table = (lambda: task.pool("train")) if isinstance(task, Records) else tuple
    chosen = [training_problems(config, draw, table), held_out_problems(config, draw)]
    say_doubts(task, *chosen)
    for name, problems in zip(("train", "held_out"), chosen, strict=True):
        pq.write_table(pa.Table.from_pylist([verl_row(p) for p in problems]), folder / "data" / f"{name}.parquet")


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys; a leading + (a key that verl's config lacks) moves to the front."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        path = f"+{prefix}{key[1:]}" if key.startswith("+") else f"{prefix}{key}"
        found |= flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return found


def _require(config: RunConfig) -> None:
    problems = list(_missing(config))
    if problems:
        raise ConfigError("backend 'verl' needs\n  " + "\n  ".join(problems))


def _missing(config: RunConfig) -> Iterator[str]:
    batch = config.batch
    if config.model.source is None:
        yield "model.source: a Hugging Face model folder or hub name"
    if not config.model.chat:
        yield "model.chat = true: verl wraps every prompt in the chat template"
    if batch.max_prompt_tokens is None:
        yield "batch.max_prompt_tokens: verl reserves room for the longest prompt"
    if batch.prompts % batch.minibatches:
        yield f"batch.minibatches that divides batch.prompts = {batch.prompts}: verl's mini-batches hold whole groups"
    longest = (batch.max_prompt_tokens or 0) + config.sampling.max_tokens
    if batch.micro_batch_tokens < longest:
        yield f"batch.micro_batch_tokens of at least {longest}, the longest prompt and response: no sequence is split"


def _data(config: RunConfig, folder: Path) -> dict[str, Any]:
    task = config.task
    options = {key: _absolute(key, value) for key, value in task.options.items()}
    chosen = {"name": task.name, "options": options, "reward": _absolute_rewards(task.reward)}
    chosen |= {name: getattr(task, name) for name in ("reward_timeout", "reward_workers", "reward_memory_gib")}
    return {
        "data.train_files": str(folder.absolute() / "data" / "train.parquet"),
        "data.val_files": str(folder.absolute() / "data" / "held_out.parquet"),
        "data.shuffle": False,
        "data.seed": config.seed,
        "data.train_batch_size": config.batch.prompts,
        "data.max_prompt_length": config.batch.max_prompt_tokens,
        "data.max_response_length": config.sampling.max_tokens,
        "data.filter_overlong_prompts": True,
        "reward.custom_reward_function.path": "pkg://holdfast.launch.verl_reward",
        "reward.custom_reward_function.name": "compute_score",
        "+reward.custom_reward_function.reward_kwargs.task": reward_settings(chosen),
    }


def _policy(config: RunConfig) -> dict[str, Any]:
    settings, batch = config.optimizer, config.batch
    short = "bf16" if config.model.autocast or config.model.dtype == "bfloat16" else "fp32"
    return {
        "actor_rollout_ref.model.path": model_folder(config.model.source or ""),
        "actor_rollout_ref.model.enable_gradient_checkpointing": config.model.gradient_checkpointing,
        f"{_ACTOR}.strategy": "fsdp2",
        # verl's fsdp_config.dtype is not read by its FSDP engine; this is.
        f"+{_ACTOR}.fsdp_config.mixed_precision": {
            "param_dtype": short,
            "reduce_dtype": "fp32",
            "buffer_dtype": "fp32",
        },
        f"{_ACTOR}.fsdp_config.seed": config.seed,
        f"{_ACTOR}.optim.lr": settings.learning_rate,
        f"{_ACTOR}.optim.lr_warmup_steps": settings.warmup_steps,
        **_schedule(config),
        f"{_ACTOR}.optim.betas": [settings.beta1, settings.beta2],
        f"{_ACTOR}.optim.weight_decay": settings.weight_decay,
        f"{_ACTOR}.optim.override_optimizer_config": {"eps": settings.epsilon},
        f"{_ACTOR}.grad_clip": settings.max_grad_norm,
        f"{_ACTOR}.ppo_mini_batch_size": batch.prompts // batch.minibatches,
        f"{_ACTOR}.ppo_epochs": batch.epochs,
        f"{_ACTOR}.data_loader_seed": config.seed,
        f"{_ACTOR}.use_dynamic_bsz": True,
        f"{_ACTOR}.ppo_max_token_len_per_gpu": batch.micro_batch_tokens,
    }


def _schedule(config: RunConfig) -> dict[str, Any]:
    """Only where it is not verl's own default: constant, torch's AdamW."""
    settings, found = config.optimizer, {}
    if settings.schedule == "cosine":
        found |= {"lr_scheduler_type": "cosine", "min_lr_ratio": settings.min_ratio}
    if settings.kind == "adamw8bit":
        found |= {"optimizer": "AdamW8bit", "optimizer_impl": "torchao.optim"}
    return {f"{_ACTOR}.optim.{name}": value for name, value in found.items()}


def _engine(config: RunConfig) -> dict[str, Any]:
    sampling = config.sampling
    precise = config.engine.precision in ("float32", "bfloat16")
    return {
        f"{_ROLLOUT}.n": config.batch.group_size,
        f"{_ROLLOUT}.temperature": sampling.temperature,
        f"{_ROLLOUT}.seed": config.seed,
        f"{_ROLLOUT}.calculate_log_probs": True,
        **({f"{_ROLLOUT}.dtype": config.engine.precision} if precise else {}),
        f"{_ROLLOUT}.val_kwargs.do_sample": not config.evaluation.greedy,
        f"{_ROLLOUT}.val_kwargs.temperature": 0.0 if config.evaluation.greedy else sampling.temperature,
    }


def _bookkeeping(config: RunConfig, folder: Path) -> dict[str, Any]:
    return {
        "trainer.v1.trainer_mode": TRAINER_MODE,
        "trainer.total_training_steps": config.steps,
        "trainer.total_epochs": max(1, config.steps),
        "trainer.test_freq": config.evaluation.every or -1,
        "trainer.save_freq": config.checkpoint.every or max(1, config.steps),
        "trainer.max_actor_ckpt_to_keep": config.checkpoint.keep,
        "trainer.default_local_dir": str(folder.absolute() / "checkpoints"),
        "trainer.logger": ["console", *config.log.trackers],
        "trainer.project_name": config.log.project,
        "trainer.experiment_name": folder.name,
    }


def _absolute_rewards(reward: str | dict[str, float] | None) -> str | dict[str, float] | None:
    if isinstance(reward, dict):
        return {_absolute_file(name): weight for name, weight in reward.items()}
    return reward and _absolute_file(reward)


def _absolute_file(function: str) -> str:
    file, colon, name = function.partition(":")
    return f"{Path(file).absolute()}{colon}{name}" if file.endswith(".py") else function


def _absolute(key: str, value: Any) -> Any:
    """Ray's workers have other working folders: the task's own files are named in full."""
    is_file = isinstance(value, str) and key.endswith("path") and Path(value).exists()
    return str(Path(value).absolute()) if is_file else value

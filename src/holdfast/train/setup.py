"""Builds what a run consists of from its configuration: task, model, engines, objective, optimiser."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from holdfast.errors import ConfigError
from holdfast.objectives.objective import Objective
from holdfast.objectives.presets import preset
from holdfast.rollout.engine import Engine
from holdfast.rollout.models import character_tokenizer, load_model, tiny_model
from holdfast.tasks import get_task
from holdfast.tasks.base import Environment, Task
from holdfast.tasks.verify import Scorer, make_scorer
from holdfast.train.checkpoint import latest_checkpoint, load_state, load_weights, no_progress_bar, save_model
from holdfast.train.config import RunConfig
from holdfast.train.data import PromptSource
from holdfast.train.engines import build_engine, embedded
from holdfast.train.episodes import Writing
from holdfast.train.folder import RunFolder, replace_folder
from holdfast.train.forward import Policy
from holdfast.train.head import find_head
from holdfast.train.ledger import Ledger
from holdfast.train.pipeline import Pipelined
from holdfast.train.sampler import Sampler, Synchronous, writing_of
from holdfast.train.seeds import derive_seed
from holdfast.train.update import Updater
from holdfast.train.warmstart import Progress, cached_warm_start, has_warm_start, warm_start


@dataclass
class Run:
    """The parts of one run; `step` counts finished steps."""

    config: RunConfig
    folder: RunFolder
    source: PromptSource
    scorer: Scorer
    objective: Objective
    policy: Policy
    updater: Updater
    optimizer: torch.optim.Optimizer
    sampler: Sampler
    writing: Writing
    judge: Engine
    notes: tuple[str, ...] = ()
    step: int = 0

    def publish(self, version: int) -> None:
        """Hand the policy's weights to the engine."""
        self.sampler.publish(self.policy.model, version)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the model folder."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "engine": self.sampler.state_dict(),
            "objective": self.updater.objective.to_dict(),
        }

    def close(self) -> None:
        """Free the engines and end what judges responses."""
        self.sampler.close()
        self.judge.close()
        self.scorer.close()


def set_up(config: RunConfig, folder: RunFolder, *, resume: bool, warm_starts: Path | None, progress: Progress) -> Run:
    """Everything a run needs, warm-started or put back to its newest checkpoint.

    Raises:
        ConfigError: parts that cannot be built or do not fit together.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(derive_seed(config.seed, "torch"))
    objective = preset(config.objective.preset, **config.objective.options)
    task = get_task(config.task.name, **config.task.options)
    model, tokenizer = build_model(config, task.alphabet)
    longest = _longest_prompt(config, model, task)
    source = PromptSource(task, tokenizer, max_tokens=longest, chat=config.model.chat)
    (head, obstacle) = find_head(model)
    processed = config.sampling.trainer_support == "processed"
    policy = Policy(
        model,
        temperature=config.sampling.temperature if processed else 1.0,
        renormalize=processed and config.sampling.truncates,
        entropy_gradient="entropy" in objective.needs,
        head=head,
    )
    root = warm_starts or folder.warm_starts
    _warm(config, Policy(model, head=head), source, root, progress)
    run = _assemble(config, folder, source, objective, policy)
    if obstacle:
        run.notes = (f"log-probabilities are made from whole logits, which takes memory: {obstacle}",)
    if resume:
        _restore(run)
    return run


def build_model(config: RunConfig, alphabet: str) -> tuple[Any, Any]:
    """The configured model, without dropout, and its tokenizer; a tiny model is made from the seed."""
    settings = config.model
    dtype = torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
    if settings.source is not None:
        with no_progress_bar():
            model, tokenizer = load_model(settings.source, dtype)
        return model.eval(), tokenizer
    tokenizer = character_tokenizer(alphabet)
    model = tiny_model(
        tokenizer,
        hidden=settings.hidden,
        layers=settings.layers,
        heads=settings.heads,
        seed=derive_seed(config.seed, "model"),
    )
    return model.to(dtype).eval(), tokenizer


def _longest_prompt(config: RunConfig, model: Any, task: Task) -> int:
    context = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    answers = (task.max_turns - 1) * task.reply_tokens if isinstance(task, Environment) else 0
    room = context - config.sampling.max_tokens - answers
    if room < 1:
        raise ConfigError(
            f"sampling.max_tokens = {config.sampling.max_tokens} leaves no room for a prompt in the model's context "
            f"of {context} tokens{f', {answers} of them for a tool' if answers else ''}; "
            f"nearest valid value: {context - answers - 1}"
        )
    return room if config.batch.max_prompt_tokens is None else min(room, config.batch.max_prompt_tokens)


def _warm(config: RunConfig, policy: Policy, source: PromptSource, root: Path, progress: Progress) -> None:
    if not has_warm_start(config):
        return
    cached = cached_warm_start(root, config)
    if not cached.is_dir():
        warm_start(policy, source, config, progress)
        temporary = cached.with_name(f".{cached.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        save_model(temporary, policy.model, source.tokenizer)
        replace_folder(temporary, cached)
    load_weights(policy.model, cached)


def _assemble(config: RunConfig, folder: RunFolder, source: PromptSource, objective: Objective, policy: Policy) -> Run:
    settings, own = config.optimizer, config.task
    optimizer = torch.optim.AdamW(
        policy.model.parameters(),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    return Run(
        config=config,
        folder=folder,
        source=source,
        scorer=make_scorer(source.task, own.reward, timeout=own.reward_timeout, workers=own.reward_workers),
        objective=objective,
        policy=policy,
        updater=Updater(config, objective, policy, _reference(policy, objective), optimizer),
        optimizer=optimizer,
        sampler=_sampler(config, folder, source, objective, policy),
        writing=writing_of(config, source, objective),
        judge=embedded(policy.model, source.tokenizer, precision=config.model.dtype),
    )


def _sampler(
    config: RunConfig, folder: RunFolder, source: PromptSource, objective: Objective, policy: Policy
) -> Sampler:
    """An engine here, or in a process of its own."""
    writing = writing_of(config, source, objective)
    home = folder.engine
    if config.asynchronous.staleness == 0:
        return Synchronous(
            config, source, writing, build_engine(config, policy.model, source.tokenizer, home / "model")
        )
    shutil.rmtree(home, ignore_errors=True)
    save_model(home / "model", policy.model, source.tokenizer)
    sampler = Pipelined(config, source, home, Ledger(folder.ledger))
    sampler.publish(policy.model, 0)
    return sampler


def _reference(policy: Policy, objective: Objective) -> Policy | None:
    """A frozen copy of the warm-started model where the objective penalises the distance from it."""
    if "ref_logprobs" not in objective.needs:
        return None
    return replace(policy, model=copy.deepcopy(policy.model).requires_grad_(False))


def _restore(run: Run) -> None:
    checkpoint = latest_checkpoint(run.folder.checkpoints)
    if checkpoint is None:
        run.folder.truncate_metrics(-1)
        return
    load_weights(run.policy.model, checkpoint / "model")
    state = load_state(checkpoint)
    run.optimizer.load_state_dict(state["optimizer"])
    run.sampler.load_state_dict(state["engine"])
    run.updater.objective = Objective.from_dict(state["objective"])
    run.step = state["step"]
    run.folder.truncate_metrics(run.step)

"""Builds what a run consists of from its configuration: task, model, engines, objective, optimiser."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from holdfast.errors import ConfigError
from holdfast.objectives.objective import Objective
from holdfast.rollout.engine import Engine
from holdfast.tasks import get_task
from holdfast.tasks.base import Environment, Task
from holdfast.tasks.verify import Scorer, make_scorer
from holdfast.train.keep.checkpoint import load_state, load_weights, newest_intact, save_model, tidy
from holdfast.train.keep.files import replace_folder
from holdfast.train.keep.folder import RunFolder
from holdfast.train.keep.ledger import Ledger
from holdfast.train.policy.forward import Looks, Policy, stats_of
from holdfast.train.policy.head import find_head
from holdfast.train.policy.lora import Merged, WithoutAdapter, add_lora, load_adapter
from holdfast.train.policy.model import build_model, compile_layers, keep_only_inputs, use_attention
from holdfast.train.policy.optimizer import make_optimizer
from holdfast.train.policy.replay import Replay
from holdfast.train.policy.unpadded import make_unpadded
from holdfast.train.sampling.data import PromptSource, Rollouts
from holdfast.train.sampling.engines import build_engine, check_first_batch, check_tokens, judge_of
from holdfast.train.sampling.episodes import Episode, Writing
from holdfast.train.sampling.pipeline import Pipelined
from holdfast.train.sampling.routing import drift_without_replay, rerouted
from holdfast.train.sampling.sampler import Sampler, Synchronous, decide_exact_kl, writing_of
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.defaults import with_steps
from holdfast.train.settings.device import check_attention, check_device, device_notes, device_of
from holdfast.train.settings.memory import keep_freed_memory
from holdfast.train.settings.objective import objective_of
from holdfast.train.settings.seeds import derive_seed
from holdfast.train.update import Updater
from holdfast.train.warmstart import Progress, cached_warm_start, has_warm_start, warm_start


@dataclass
class Run:
    """The parts of one run; `step` counts finished steps.

    `engine_view` is the policy's model as engines take it over, `saved` as it is saved: with LoRA both are not the
    model itself. `notes` are said once, with the first step, `start_notes` before it. `begun` is the random state in
    which the step under way began, None between steps. `experts_changed` [B, T] are a mixture's choices of experts in
    which trainer and engine differ in the last step's rollouts.
    """

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
    engine_view: torch.nn.Module
    saved: Any
    engine_checked: bool
    notes: tuple[str, ...] = ()
    start_notes: tuple[str, ...] = ()
    step: int = 0
    begun: torch.Tensor | None = None
    experts_changed: torch.Tensor | None = None

    def publish(self, version: int) -> None:
        """Hand the policy's weights to the engine."""
        self.sampler.publish(self.engine_view, version)

    def check_engine(self, episodes: Sequence[Episode]) -> None:
        """Tokens always; for an engine outside, once, the first responses under the trainer's own weights.

        Raises:
            EngineError: tokens that the model does not have, or it does not sample from the policy that it claims.
        """
        vocabulary = self.policy.model.get_input_embeddings().weight.shape[0]
        check_tokens(self.config.engine.kind, episodes, vocabulary)
        same = all(version == self.step for episode in episodes for version in episode.versions)
        if not self.engine_checked and same:
            engine = self.config.engine
            precision = engine.precision if engine.kind == "vllm" else None
            check_first_batch(self.policy.model, episodes, self.writing.sampling, precision)
            self.engine_checked = True

    def router_drift(self, rollouts: Rollouts) -> dict[str, float]:
        """For a mixture of experts in an engine of ours: how often it chose other experts (before the update).

        With replay also how far the policies would be apart without it.
        """
        self.experts_changed = None
        sequences, most = rollouts.sequences, self.config.batch.micro_batch_tokens
        if sequences.experts is None:
            return {}
        found = rerouted(self.policy.model, sequences, sequences.experts, most)
        if found is None:
            return {}
        self.experts_changed = found.changed
        without = {}
        if self.policy.replay is not None:
            own = stats_of(replace(self.policy, replay=None), sequences, torch.arange(len(sequences.lengths)), most)
            without = drift_without_replay(own.logprobs, rollouts.rollout_logprobs, sequences.response_mask)
        return {**found.metrics, **without}

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


def set_up(
    config: RunConfig,
    folder: RunFolder,
    *,
    resume: bool,
    warm_starts: Path | None,
    progress: Progress,
    task: Task | None = None,
) -> Run:
    """Everything a run needs, warm-started or put back to its newest checkpoint; `task` where it is built already.

    Raises:
        ConfigError: parts that cannot be built or do not fit together.
    """
    check_device(config)
    check_attention(config.model)
    torch.set_num_threads(config.threads)
    if device_of(config.model).type == "cpu":
        keep_freed_memory()
    torch.manual_seed(derive_seed(config.seed, "torch"))
    objective = objective_of(config)
    task = task or get_task(config.task.name, **config.task.options)
    model, tokenizer = build_model(config, task.alphabet)
    longest = longest_prompt(config, model.config, task)
    source = PromptSource(task, tokenizer, max_tokens=longest, chat=config.model.chat)
    config, said = _decided(config, source, objective, model)
    scorer = _scorer(config, task)  # before anything that takes long: it may not be there
    try:
        base = _warm(config, model, source, warm_starts or folder.warm_starts, progress)
        run = _assemble(config, folder, source, objective, model, base, scorer)
    except BaseException:
        scorer.close()
        raise
    run.start_notes = (*device_notes(config), *said)
    if resume:
        run.start_notes = (*run.start_notes, *_restore(run))
    return run


def _scorer(config: RunConfig, task: Task) -> Scorer:
    own = config.task
    return make_scorer(
        task,
        own.reward,
        timeout=own.reward_timeout,
        workers=own.reward_workers,
        memory_gib=own.reward_memory_gib,
    )


def _decided(
    config: RunConfig, source: PromptSource, objective: Objective, model: Any
) -> tuple[RunConfig, tuple[str, ...]]:
    """What of the configuration hangs on the table and the vocabulary, and what to say of it."""
    if config.data_epochs is not None:
        config = with_steps(config, len(source.table))
    return decide_exact_kl(config, objective, model.get_input_embeddings().weight.shape[0])


def longest_prompt(config: RunConfig, model_config: Any, task: Task) -> int:
    """Tokens that a prompt may have: what the model's context leaves beside the response, or less if so configured.

    Raises:
        ConfigError: nothing is left.
    """
    context = getattr(model_config, "max_position_embeddings", None) or 1 << 30
    answers = (task.max_turns - 1) * task.reply_tokens if isinstance(task, Environment) else 0
    room = context - config.sampling.max_tokens - answers
    if room < 1:
        raise ConfigError(
            f"sampling.max_tokens = {config.sampling.max_tokens} leaves no room for a prompt in the model's context "
            f"of {context} tokens{f', {answers} of them for a tool' if answers else ''}; "
            f"nearest valid value: {context - answers - 1}"
        )
    return room if config.batch.max_prompt_tokens is None else min(room, config.batch.max_prompt_tokens)


def _warm(config: RunConfig, model: Any, source: PromptSource, root: Path, progress: Progress) -> str:
    """Warm-start the model if asked to; returns where it can be loaded from."""
    if not has_warm_start(config):
        return config.model.source or ""
    cached = cached_warm_start(root, config)
    if not cached.is_dir():
        warm_start(Policy(model, head=find_head(model)[0], autocast=config.model.autocast), source, config, progress)
        temporary = cached.with_name(f".{cached.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        save_model(temporary, model, source.tokenizer)
        replace_folder(temporary, cached)
    load_weights(model, cached)
    return str(cached.resolve())


def _assemble(
    config: RunConfig,
    folder: RunFolder,
    source: PromptSource,
    objective: Objective,
    model: Any,
    base: str,
    scorer: Scorer,
) -> Run:
    # Engines copy the model before adapters go into it: they run whole weights.
    sampler = _sampler(config, folder, source, objective, model)
    own_engine = sampler.engine if isinstance(sampler, Synchronous) else None
    judge = judge_of(config, own_engine, model, source.tokenizer)
    adapted = None
    if config.lora.rank:
        adapted = add_lora(model, config.lora, base=base, seed=derive_seed(config.seed, "lora"))
    policy, notes = _policy(config, objective, model)
    reference = _reference(policy, objective, adapted)
    if config.model.gradient_checkpointing:
        keep_only_inputs(model, policy.replay)
    if config.model.compile:
        compile_layers(model, recomputed=config.model.gradient_checkpointing)
    optimizer = make_optimizer(config.optimizer, [p for p in model.parameters() if p.requires_grad])
    return Run(
        config=config,
        folder=folder,
        source=source,
        scorer=scorer,
        objective=objective,
        policy=policy,
        updater=Updater(config, objective, policy, reference, optimizer),
        optimizer=optimizer,
        sampler=sampler,
        writing=writing_of(config, source, objective),
        judge=judge,
        engine_view=model if adapted is None else Merged(model),
        saved=adapted or model,
        engine_checked=config.engine.kind == "embedded",
        notes=notes,
    )


def _policy(config: RunConfig, objective: Objective, model: Any) -> tuple[Policy, tuple[str, ...]]:
    """The model as the objective sees it, and what there is to say about its head."""
    use_attention(model, config.model)
    head, obstacle = find_head(model)
    unpadded = config.model.unpadded and head is not None and not make_unpadded(model, autocast=config.model.autocast)
    processed = config.sampling.trainer_support == "processed"
    policy = Policy(
        model,
        temperature=config.sampling.temperature if processed else 1.0,
        renormalize=processed and config.sampling.truncates,
        entropy_gradient="entropy" in objective.needs,
        head=head,
        autocast=config.model.autocast,
        unpadded=unpadded,
        replay=Replay(model) if config.engine.replay_experts else None,
    )
    if head is not None:
        return policy, ()
    return policy, (f"log-probabilities are made from whole logits, which takes memory: {obstacle}",)


def _reference(policy: Policy, objective: Objective, adapted: Any) -> Looks | None:
    """The frozen policy before training, where the objective penalises the distance from it."""
    if "ref_logprobs" not in objective.needs:
        return None
    if adapted is not None:
        return WithoutAdapter(policy, adapted)
    # Where experts are replayed, the copy's routers listen to the same recorded ones.
    return replace(policy, model=copy.deepcopy(policy.model).requires_grad_(False))


def _sampler(config: RunConfig, folder: RunFolder, source: PromptSource, objective: Objective, model: Any) -> Sampler:
    """An engine here, or in a process of its own."""
    writing = writing_of(config, source, objective)
    home = folder.engine
    if config.asynchronous.staleness == 0:
        return Synchronous(config, source, writing, build_engine(config, model, source.tokenizer, home))
    shutil.rmtree(home, ignore_errors=True)
    save_model(home / "model", model, source.tokenizer)
    sampler = Pipelined(config, source, home, Ledger(folder.ledger))
    sampler.publish(model, 0)
    return sampler


def _restore(run: Run) -> list[str]:
    """Put the run back to its newest intact checkpoint, or to its start; says what was damaged."""
    run.folder.tidy()
    tidy(run.folder.checkpoints)
    checkpoint, said = newest_intact(run.folder.checkpoints)
    if checkpoint is None:
        run.sampler.start_over()
        return run.folder.truncate_metrics(-1)
    if run.config.lora.rank:
        load_adapter(run.saved, checkpoint / "model")
    else:
        load_weights(run.policy.model, checkpoint / "model")
    state = load_state(checkpoint)
    run.optimizer.load_state_dict(state["optimizer"])
    run.sampler.load_state_dict(state["engine"])
    run.updater.objective = Objective.from_dict(state["objective"])
    run.step = state["step"]
    if run.config.engine.kind != "embedded" and run.config.asynchronous.staleness == 0:
        run.publish(run.step)  # an engine outside keeps no weights for us
    return said + run.folder.truncate_metrics(run.step)

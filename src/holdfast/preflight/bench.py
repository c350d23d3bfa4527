"""The engine under test, the trainer beside it, and how to make the engine again with another setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from holdfast.errors import ConfigError
from holdfast.preflight.observe import Asked, Observation, Told, Trainer, observe
from holdfast.preflight.plan import Plan
from holdfast.preflight.prompts import Prompt
from holdfast.rollout.engine import Engine
from holdfast.rollout.engines import EngineSettings, make_engine
from holdfast.train.policy.forward import Policy
from holdfast.train.policy.head import find_head
from holdfast.train.policy.model import use_attention
from holdfast.train.policy.unpadded import make_unpadded

Maker = Callable[[EngineSettings], Engine]


@dataclass
class Bench:
    """What every check of a preflight needs; `engine` is None while another one is tried in its place.

    `reloaded(dtype)` is the trainer's model as training would load it in another dtype, where there is a source of it.
    """

    plan: Plan
    model: Any
    trainer: Trainer
    asked: Asked
    settings: EngineSettings
    make: Maker
    told: Told
    engine: Engine | None = None
    reloaded: Callable[[str], Any] | None = None

    def running(self) -> Engine:
        """The engine as it is configured, made where it is not there."""
        if self.engine is None:
            self.told("starting the engine", 0, 1)
            self.engine = self._made(self.settings, self.plan.request)
        return self.engine

    def observe(self, doing: str, asked: Asked | None = None) -> Observation:
        """Sample from the running engine and score."""
        return observe(self.running(), self.trainer, asked or self.asked, self.told, doing=doing)

    @contextmanager
    def rebuilt(self, doing: str, **changes: Any) -> Iterator[Engine]:
        """Another engine in place of the one that runs: two of them may not fit beside each other."""
        self.close()
        self.told(f"starting the engine for: {doing}", 0, 1)
        other = self._made(replace(self.settings, **changes), self.plan.request)
        try:
            yield other
        finally:
            other.close()

    def close(self) -> None:
        """End the engine that runs, if one does."""
        engine, self.engine = self.engine, None
        if engine is not None:
            engine.close()

    def _made(self, settings: EngineSettings, request: Any) -> Engine:
        engine = self.make(settings)
        if request:
            fields = getattr(engine, "request", None)
            if fields is None:
                raise ConfigError(f"--request {next(iter(request))}: this engine takes no further fields; leave it out")
            fields.update(request)
        return engine


def trainer_of(plan: Plan, model: Any, tokenizer: Any) -> Trainer:
    """The forward pass as the run's configuration sets it: dtype, autocast, attention, padding, head."""
    settings = plan.config.model
    use_attention(model, settings)
    head, _ = find_head(model)
    unpadded = settings.unpadded and head is not None and not make_unpadded(model, autocast=settings.autocast)
    policy = Policy(model, head=head, autocast=settings.autocast, unpadded=unpadded)
    return Trainer(policy, tokenizer.pad_token_id, plan.config.batch.micro_batch_tokens)


def engine_settings(plan: Plan) -> EngineSettings:
    """Of the run's engine, in step with the trainer: staleness is planned for, not measured here.

    Without sampling masks, under which vLLM takes no request from the whole vocabulary.
    """
    own = {"exact_kl", "top_logprobs", "sampling_mask", "replay_experts", "command", "sleep", "lag"}
    values = plan.config.engine.model_dump(exclude=own)
    return EngineSettings(**values, command=tuple(plan.config.engine.command))


def maker(model: Any, tokenizer: Any, folder: Path, sync_folder: Path | None) -> Maker:
    """How to make engines that run the weights of `model`; a server that runs already keeps those that it has."""

    def make(settings: EngineSettings) -> Engine:
        if settings.kind != "server" or settings.sync == "restart":
            return make_engine(settings, model, tokenizer, folder)
        from holdfast.rollout.outside.http import HttpClient
        from holdfast.rollout.outside.server import ServerEngine

        return ServerEngine(
            HttpClient(settings.url, timeout=settings.timeout, retries=settings.retries),
            folder=sync_folder or folder,
            eos_token_id=tokenizer.eos_token_id,
            tokenizer=tokenizer,
            concurrency=settings.concurrency,
        )

    return make


def bench_of(plan: Plan, prompts: list[Prompt], model: Any, tokenizer: Any, make: Maker, told: Told) -> Bench:
    """Everything ready, and no engine started yet."""
    trainer = trainer_of(plan, model, tokenizer)
    return Bench(plan, model, trainer, plan.asked(prompts, trainer.vocabulary), engine_settings(plan), make, told)

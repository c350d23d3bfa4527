"""One door to every engine: by its kind and its settings, with the weights of the trainer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from holdfast.errors import ConfigError, nearest
from holdfast.rollout.embedded.embedded import EmbeddedEngine
from holdfast.rollout.engine import Engine

EngineKind = Literal["embedded", "vllm", "server"]


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is and how it runs; each field belongs to the kinds named in brackets.

    precision [embedded, vllm]: its numerics. lag [embedded]: updates that its weights are behind. compile [embedded]:
    whether its steps are compiled. context [vllm]: longest prompt with response; None: the model's. cache_gib
    [embedded, vllm]: room for keys and values; ours decodes in blocks that fit. sleep [vllm]: whether it
    can give a card's memory back. options [vllm]: further arguments of `vllm.LLM`. url, timeout (seconds per request),
    retries, concurrency (requests at a time) [server]. sampling_mask [vllm, server]: whether it is started so that it
    reports the tokens that each one was drawn from; ours always can. replay_experts [embedded, vllm]: the same of a
    mixture's experts. sync [server]: "reload" has a running server take over the weights, "restart" runs `command` on
    them anew, in which "{folder}" stands for the model folder.
    """

    kind: str = "embedded"
    precision: str = "float32"
    lag: int = 0
    compile: bool = False
    context: int | None = None
    cache_gib: float = 4.0
    sleep: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    url: str = "http://127.0.0.1:8000"
    timeout: float = 600.0
    retries: int = 3
    concurrency: int = 64
    sync: Literal["reload", "restart"] = "reload"
    command: tuple[str, ...] = ()
    sampling_mask: bool | None = None
    replay_experts: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(EngineKind):
            raise ConfigError(f"engine.kind = {self.kind!r}: {nearest(self.kind, get_args(EngineKind))}")
        if self.lag and self.kind != "embedded":
            raise ConfigError(
                f"engine.lag = {self.lag} with engine.kind = {self.kind!r}: only the embedded engine lags on purpose; "
                "set it to 0 and let asynchronous rollouts do it"
            )
        if self.compile and self.kind != "embedded":
            raise ConfigError(
                f"engine.compile with engine.kind = {self.kind!r}: only the embedded engine is compiled; leave it out"
            )
        if self.sync == "restart" and self.kind == "server" and not self.command:
            raise ConfigError(
                "engine.sync = 'restart' needs engine.command, the words that start the server, e.g. "
                '["vllm", "serve", "{folder}", "--host", "127.0.0.1", "--port", "8000"]'
            )
        if self.cache_gib <= 0 or self.concurrency < 1:
            raise ConfigError(
                f"engine.cache_gib = {self.cache_gib}, engine.concurrency = {self.concurrency}: the first must be "
                "above 0, the second at least 1"
            )


def make_engine(settings: EngineSettings, model: Any, tokenizer: Any, folder: Path) -> Engine:
    """An engine that runs the weights of `model` as version 0.

    `folder` is for engines outside: the model is written there, and, for a server, every later version.

    Raises:
        ConfigError: settings that cannot be honoured.
        EngineError: the engine cannot be started, or serves another tokenizer.
    """
    if settings.kind == "embedded":
        return EmbeddedEngine(
            model,
            precision=settings.precision,
            lag=settings.lag,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            compile=settings.compile,
            cache_gib=settings.cache_gib,
        )
    if settings.kind == "vllm":
        return _vllm(settings, model, tokenizer, folder)
    return _server(settings, model, tokenizer, folder)


def _vllm(settings: EngineSettings, model: Any, tokenizer: Any, folder: Path) -> Engine:
    from holdfast.rollout.outside.external import write_model
    from holdfast.rollout.outside.vllm import VllmEngine

    first = folder / "version-0"
    write_model(model, tokenizer, first)
    engine = VllmEngine(
        first,
        eos_token_id=tokenizer.eos_token_id,
        precision=settings.precision,
        context=settings.context,
        cache_gib=settings.cache_gib,
        sleep=settings.sleep,
        options={**settings.options, **_reports(settings)},
    )
    shutil.rmtree(first)
    return engine


def _reports(settings: EngineSettings) -> dict[str, Any]:
    asked = {"return_sampling_mask": settings.sampling_mask, "enable_return_routed_experts": settings.replay_experts}
    return {name: True for name, wanted in asked.items() if wanted}


def _server(settings: EngineSettings, model: Any, tokenizer: Any, folder: Path) -> Engine:
    from holdfast.rollout.outside.external import write_model
    from holdfast.rollout.outside.http import HttpClient
    from holdfast.rollout.outside.process import ServerProcess
    from holdfast.rollout.outside.server import ServerEngine

    client = HttpClient(settings.url, timeout=settings.timeout, retries=settings.retries)
    process = None
    if settings.sync == "restart":
        process = ServerProcess(settings.command, client, folder / "server.log")
        first = folder / "version-0"
        write_model(model, tokenizer, first)
        process.start(first)
    engine = ServerEngine(
        client,
        folder=folder,
        eos_token_id=tokenizer.eos_token_id,
        tokenizer=tokenizer,
        sync=settings.sync,
        process=process,
        concurrency=settings.concurrency,
        masks=bool(settings.sampling_mask),
    )
    if settings.sync == "reload":
        engine.sync(model, 0)
    return engine

"""The tables of whoever writes the rollouts: the engine, its process, how it samples."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from holdfast.rollout.outside.http import address_trouble
from holdfast.train.settings.section import Section


class EngineConfig(Section):
    """The rollout engine: another program state than the trainer (docs/engines.md)."""

    kind: Literal["embedded", "vllm", "server"] = Field(
        default="embedded", description="ours, vLLM in process, or a server with the OpenAI completions protocol"
    )
    precision: str = Field(
        default="int8",
        description="numerics of the engine's copy of the weights [embedded, vllm]; with `model.source`: bfloat16, or "
        "float32 on a GPU without it",
    )
    lag: int = Field(default=0, ge=0, le=1024, description="updates that the engine's weights are behind [embedded]")
    compile: bool = Field(
        default=False, description="compile its steps with torch.compile: ten seconds per batch size once [embedded]"
    )
    exact_kl: bool | None = Field(
        default=None,
        description="measure exact KL from full distributions even if no mask needs it; absent: where those of a step "
        "take at most 2 GB (4 bytes x vocabulary x `max_tokens` x responses)",
    )
    top_logprobs: int = Field(
        default=0, ge=0, description="likeliest tokens reported per position, for bounds of KL and TV; 0: none"
    )
    sampling_mask: bool | None = Field(
        default=None,
        description="have the engine report all tokens that each one was drawn from, on which the trainer then "
        "renormalises a truncated support; absent: yes [embedded], else whole distributions are asked for",
    )
    replay_experts: bool = Field(
        default=False,
        description="send every token of a mixture of experts to those that the engine chose for it [embedded, vllm]",
    )
    context: int | None = Field(
        default=None, ge=2, description="longest prompt and response; absent: the model's [vllm]"
    )
    cache_gib: float = Field(default=4.0, gt=0.0, description="room for keys and values [embedded, vllm]")
    sleep: bool | None = Field(
        default=None, description="give a GPU's memory back during updates; absent: unless asynchronous [vllm]"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="further arguments of vllm.LLM [vllm]")
    url: str = Field(default="http://127.0.0.1:8000", description="where the server listens [server]")
    timeout: float = Field(default=600.0, gt=0.0, description="seconds a request may take [server]")
    retries: int = Field(default=3, ge=0, description="further attempts of a failed request [server]")
    concurrency: int = Field(default=64, ge=1, description="requests at a time [server]")
    sync: Literal["reload", "restart"] = Field(
        default="reload", description="how the server gets new weights: by its reload, or started anew [server]"
    )
    command: list[str] = Field(
        default_factory=list, description='words that start the server, "{folder}" for the model; for restart [server]'
    )

    @model_validator(mode="after")
    def _address_can_be_written(self) -> EngineConfig:
        if (trouble := address_trouble(self.url)) is not None:
            raise ValueError(trouble)
        return self


class AsyncConfig(Section):
    """Rollouts written by an engine in a process of its own, while the trainer updates (docs/async.md)."""

    staleness: int = Field(
        default=0, ge=0, le=64, description="updates that the oldest token of a response is behind; 0: wait instead"
    )
    segments: int = Field(
        default=1, ge=1, le=64, description="pieces in which a response is written, each under newer weights"
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="where the engine's process computes: auto (the trainer's device), cpu, cuda or cuda:1 [embedded]",
    )
    timeout: float = Field(default=600.0, gt=0.0, description="seconds without an answer after which an engine is dead")
    restarts: int = Field(default=3, ge=0, description="restarts of a dead engine without an answer in between")

    @model_validator(mode="after")
    def _segments_fit(self) -> AsyncConfig:
        if self.segments > max(1, self.staleness):
            raise ValueError(
                f"segments = {self.segments}: every piece is under newer weights, so staleness = {self.staleness} "
                f"allows at most {max(1, self.staleness)}; nearest valid value: {max(1, self.staleness)}"
            )
        return self


class SamplingConfig(Section):
    """How the engine samples; trainer log-probabilities are taken on the same temperature and support."""

    temperature: float = Field(default=1.0, gt=0.0, le=10.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0, description="0: off")
    min_p: float = Field(default=0.0, ge=0.0, lt=1.0)
    max_tokens: int = Field(default=256, ge=1, description="longest response")
    trainer_support: Literal["processed", "raw"] = Field(
        default="processed", description="raw: the trainer ignores temperature and truncation (a mismatch on purpose)"
    )

    @property
    def truncates(self) -> bool:
        """Whether some tokens cannot be sampled at all."""
        return self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0

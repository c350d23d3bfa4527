"""What a preflight is to look at: a run's configuration, the prompts, and what training will add to the drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.audit.judge.fixes import FRAMEWORKS
from holdfast.errors import ConfigError, nearest
from holdfast.preflight.observe import Asked, Reading
from holdfast.preflight.prompts import FEWEST, Prompt
from holdfast.rollout.engine import Sampling
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.configfile import build_config, with_overrides

EXACT_VOCABULARY = 10_000
"""Up to here engines outside are asked for whole distributions, which they send as lists."""
TOP = 20
"""Likeliest tokens that engines outside are asked for otherwise: what vLLM servers give unless told more."""
PENALTIES: Mapping[str, float] = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Fields of a request that penalise tokens, and the value at which each does nothing."""


@dataclass(frozen=True)
class Plan:
    """Everything that is asked of a preflight.

    `config` is the run's: model, engine, sampling, batch. `request` are further fields of the engine's requests.
    `framework` says whose trainer scores and whose settings are printed. `length` (tokens) and `staleness` (updates)
    are planned for training, `update_kl` is the KL per token that one update is taken to add. `sync_folder` is where a
    running server reads new weights from; without it such a server's weights are left alone.
    """

    config: RunConfig
    framework: str = "Holdfast"
    responses: int = 256
    request: Mapping[str, Any] = field(default_factory=dict)
    length: int | None = None
    staleness: int | None = None
    update_kl: float = 1e-4
    sync: bool = True
    sync_folder: Path | None = None
    engine_template: str | None = None
    switches: bool = True

    def __post_init__(self) -> None:
        for name, holds, allowed in (
            ("responses", self.responses >= FEWEST, f"at least {FEWEST}, one for each of as many prompts"),
            ("length", self.length is None or self.length >= self.config.sampling.max_tokens,
             f"at least sampling.max_tokens = {self.config.sampling.max_tokens}"),
            ("staleness", self.staleness is None or self.staleness >= 0, "at least 0 updates"),
            ("update_kl", self.update_kl > 0, "above 0 nats a token"),
        ):  # fmt: skip
            if not holds:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {allowed}")
        if self.request and self.config.engine.kind == "embedded":
            raise ConfigError(
                f"--request {next(iter(self.request))}: the embedded engine takes no further fields; leave it out"
            )
        if self.config.sampling.temperature == 0:
            raise ConfigError("sampling.temperature = 0: greedy responses are certain and show no drift; take 1")

    @property
    def planned_length(self) -> int:
        """Longest response in training, tokens."""
        return self.length or self.config.sampling.max_tokens

    @property
    def planned_staleness(self) -> int:
        """Updates that the oldest rollouts in training will be behind."""
        own = max(self.config.engine.lag, self.config.asynchronous.staleness)
        return own if self.staleness is None else self.staleness

    @property
    def sampling(self) -> Sampling:
        """As the engine samples."""
        s = self.config.sampling
        return Sampling(s.temperature, s.top_p, s.top_k, s.min_p, s.max_tokens)

    def reports(self, vocabulary: int) -> tuple[bool, int]:
        """Whether whole distributions are asked for, and how many likeliest tokens otherwise."""
        engine = self.config.engine
        if engine.exact_kl is not None or engine.top_logprobs:
            return bool(engine.exact_kl), engine.top_logprobs
        exact = engine.kind == "embedded" or vocabulary <= EXACT_VOCABULARY
        return exact, 0 if exact else TOP

    def asked(self, prompts: Sequence[Prompt], vocabulary: int) -> Asked:
        """What the engine is asked, as the run will ask it."""
        exact, top = self.reports(vocabulary)
        number = min(len(prompts), self.responses)
        each = self.responses // number
        rows = tuple((place, prompt) for place, prompt in enumerate(prompts[:number]) for _ in range(each))
        sampling = self.sampling
        return Asked(
            prompts=rows,
            sampling=sampling,
            reading=self.reading(sampling, exact, top),
            seed=self.config.seed,
            exact=exact,
            top=top,
            rows=self.config.batch.sequences,
        )

    def reading(self, sampling: Sampling, exact: bool, top: int) -> Reading:
        """What the framework's trainer makes of the sampling.

        All divide the logits by the temperature. The kept set of a truncation is known to Holdfast's alone, where the
        engine reports it; the others' trainers score over the whole vocabulary.
        """
        if self.config.sampling.trainer_support == "raw":
            return Reading()
        known = exact or 0 < sampling.top_k < top
        return Reading(sampling.temperature, sampling.truncates and self.framework == "Holdfast" and known)


def framework_named(name: str) -> str:
    """The framework as the project spells it.

    Raises:
        ConfigError: none is called so.
    """
    found = {framework.lower(): framework for framework in FRAMEWORKS}
    if name.lower() not in found:
        raise ConfigError(f"--framework {name!r}: {nearest(name, FRAMEWORKS)}")
    return found[name.lower()]


def configure(values: dict[str, Any], model: str | None, engine: str | None, overrides: Sequence[str]) -> RunConfig:
    """A run's configuration from its tables, `--model`, `--engine` (a kind or an address) and `--section.key value`.

    Raises:
        ConfigError: no model, or a key or value that cannot be.
    """
    values = with_overrides(values, overrides)
    if model is not None:
        values["model"] = {**values.get("model", {}), "source": model}
    if engine is not None:
        kind = {"kind": "server", "url": engine.rstrip("/")} if "://" in engine else {"kind": engine}
        values["engine"] = {**values.get("engine", {}), **kind}
    if not values.get("model", {}).get("source"):
        raise ConfigError('which model? give --model, a folder, a hub name or "smollm2", or a run\'s TOML file')
    # Nothing is trained: our own trainer's refusal of steps that bfloat16 weights would round away is beside the point.
    return build_config(values, origin="preflight", trainer="trl")


def request_fields(pairs: Sequence[str]) -> dict[str, Any]:
    """Fields of a request from KEY=VALUE, the value read as JSON where it is JSON.

    Raises:
        ConfigError: a pair without a key or value.
    """
    import json

    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not key or not equals or not text:
            raise ConfigError(f"--request {pair!r}: write it as KEY=VALUE, e.g. repetition_penalty=1.05")
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found

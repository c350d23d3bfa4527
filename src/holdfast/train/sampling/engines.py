"""The engine that a configuration asks for, and whether its first responses come from the policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdfast.errors import EngineError
from holdfast.rollout.embedded.embedded import EmbeddedEngine
from holdfast.rollout.engine import Completion, Engine, Sampling
from holdfast.rollout.engines import EngineSettings, make_engine
from holdfast.rollout.rescore import check_engine
from holdfast.train.sampling.episodes import Episode
from holdfast.train.settings.config import RunConfig


def build_engine(config: RunConfig, model: Any, tokenizer: Any, folder: Path) -> Engine:
    """An engine with the weights of `model`; `folder` is for files that an engine outside needs.

    Raises:
        ConfigError: settings that cannot be honoured.
        EngineError: the engine cannot be started.
    """
    settings = config.engine.model_dump(exclude={"exact_kl", "top_logprobs", "command", "sleep"})
    settings |= {"command": tuple(config.engine.command), "sleep": sleeps(config)}
    return make_engine(EngineSettings(**settings), model, tokenizer, folder)


def sleeps(config: RunConfig) -> bool:
    """Whether the engine gives its memory back during updates: by default where it takes turns with the trainer."""
    return config.asynchronous.staleness == 0 if config.engine.sleep is None else config.engine.sleep


def embedded(model: Any, tokenizer: Any, *, precision: str, lag: int = 0) -> Engine:
    """An engine of ours in this process."""
    return make_engine(EngineSettings(precision=precision, lag=lag), model, tokenizer, Path())


def judge_of(config: RunConfig, engine: Engine | None, model: Any, tokenizer: Any) -> Engine:
    """What evaluations sample from: the run's own engine where it is outside, else the trainer's model itself.

    No copy of the weights is made for either. `engine` is None where it runs in a process of its own.
    """
    if engine is not None and config.engine.kind != "embedded":
        return engine
    return EmbeddedEngine(
        model,
        precision=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        cache_gib=config.evaluation.cache_gib,
    )


def check_tokens(engine: str, episodes: Sequence[Episode], vocabulary: int) -> None:
    """Whether the model has every token.

    Raises:
        EngineError: it has not; the message names engine, sequence and token.
    """
    for episode in episodes:
        for place, token in enumerate(episode.token_ids):
            if token >= vocabulary:
                raise EngineError(
                    f"the {engine} engine, sequence {episode.sequence_id}: token {place} of the response is {token}, "
                    f"and the trainer's model has {vocabulary}: give trainer and engine the same model folder"
                )
        ids = episode.support_ids
        if ids is not None and len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            raise EngineError(
                f"the {engine} engine, sequence {episode.sequence_id}: its sampling mask names tokens from "
                f"{int(ids.min())} to {int(ids.max())}, and the trainer's model has {vocabulary}: give trainer and "
                "engine the same model folder"
            )


def check_first_batch(
    model: Any, episodes: Sequence[Episode], sampling: Sampling, precision: str | None = None
) -> None:
    """Score the first turns again with the trainer's model; `precision` is what the engine computes in.

    Raises:
        EngineError: their log-probabilities are another model's, or do not belong to the tokens.
    """
    completions = []
    for episode in episodes:
        assert episode.logprobs is not None
        count = sum(own and turn == 0 for own, turn in zip(episode.sampled, episode.turn_ids, strict=True))
        completions.append(Completion(episode.token_ids[:count], episode.logprobs[:count], "stop", episode.versions[0]))
    check_engine(model, [episode.prompt_ids for episode in episodes], completions, sampling, precision=precision)

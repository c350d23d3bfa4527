"""The engine that a configuration asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from holdfast.rollout.embedded import EmbeddedEngine
from holdfast.rollout.engine import Engine
from holdfast.train.config import RunConfig


def build_engine(config: RunConfig, model: Any, tokenizer: Any, folder: Path) -> Engine:
    """An engine with the weights of `model`, which are also in `folder`.

    Raises:
        ConfigError: unknown precision.
    """
    return embedded(model, tokenizer, precision=config.engine.precision, lag=config.engine.lag)


def embedded(model: Any, tokenizer: Any, *, precision: str, lag: int = 0) -> EmbeddedEngine:
    """An engine in this process."""
    return EmbeddedEngine(
        model,
        precision=precision,
        lag=lag,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )

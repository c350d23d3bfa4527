"""Holdfast: reinforcement learning of language models that stays stable over long horizons."""

from holdfast.errors import ConfigError, DataError, EngineError, HoldfastError
from holdfast.types import Batch, Counts, LossOutput, Rollout, TokenStats

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "ConfigError",
    "Counts",
    "DataError",
    "EngineError",
    "HoldfastError",
    "LossOutput",
    "Rollout",
    "TokenStats",
    "__version__",
]

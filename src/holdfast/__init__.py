"""Holdfast: reinforcement learning of language models that stays stable over long horizons.

The public names. A rollout flows from `rollout` (who sampled) through `kernels` and `objectives` (what the trainer
makes of it) to `train`; a log flows through `audit`. `core` holds the mathematics that both stand on.
"""

from holdfast.core.advise import advise
from holdfast.core.betting import EProcess
from holdfast.core.certificate import certify, prompt_gains
from holdfast.core.units import split_by_prompt
from holdfast.errors import ConfigError, DataError, EngineError, HoldfastError
from holdfast.objectives.metrics import merge_metrics
from holdfast.objectives.objective import Objective, Plan
from holdfast.objectives.presets import list_presets, preset
from holdfast.types import Batch, Counts, LossOutput, Rollout, TokenStats

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "ConfigError",
    "Counts",
    "DataError",
    "EProcess",
    "EngineError",
    "HoldfastError",
    "LossOutput",
    "Objective",
    "Plan",
    "Rollout",
    "TokenStats",
    "__version__",
    "advise",
    "certify",
    "list_presets",
    "merge_metrics",
    "preset",
    "prompt_gains",
    "split_by_prompt",
]

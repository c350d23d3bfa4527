"""Holdfast: reinforcement learning of language models that stays stable over long horizons.

The public names. A rollout flows from `rollout` (who sampled) through `kernels` and `objectives` (what the trainer
makes of it) to `train`; a log flows through `audit`. `core` holds the mathematics that both stand on.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOME = {
    "core.advise": ("advise",),
    "core.betting": ("EProcess",),
    "core.certificate": ("certify", "prompt_gains"),
    "core.units": ("split_by_prompt",),
    "errors": ("ConfigError", "DataError", "EngineError", "HoldfastError"),
    "objectives.metrics": ("merge_metrics",),
    "objectives.objective": ("Objective", "Plan"),
    "objectives.presets": ("list_presets", "preset"),
    "types": ("Batch", "Counts", "LossOutput", "Rollout", "TokenStats"),
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}
_PACKAGES = ("core", "kernels", "objectives")


def __getattr__(name: str) -> Any:
    """Load what is asked for: torch takes seconds, and the command line does without it where it can."""
    if name in _PACKAGES:
        return import_module(f"holdfast.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    value = getattr(import_module(f"holdfast.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})

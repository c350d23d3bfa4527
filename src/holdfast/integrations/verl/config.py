"""The configuration class that `policy_loss._target_` names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl.workers.config import PolicyLossConfig

from holdfast.errors import ConfigError
from holdfast.guard.settings import GuardSettings
from holdfast.integrations.verl.names import is_ours, objective_name, with_settings
from holdfast.objectives.objective import Objective


@dataclass
class HoldfastLossConfig(PolicyLossConfig):
    """verl's policy-loss settings plus ours; checked when verl composes its config, before any worker starts.

    objective: rows of the table joined with "+", read where loss_mode is `holdfast`.
    settings: what `Objective.with_` takes, `settings.delta=0.05` or `settings.clip_cov.high=3`.
    bypass_mode: set it beside `algorithm.rollout_correction.bypass_mode`; the loss plug-in cannot see that one.
    baseline: "all", or "accepted" to take rejected sequences out of the group baseline (level 2).
    records: absolute folder for the token records of every step, a parquet file per rank and update (level 2).
    guard: settings of the live guard, `guard.halt_on=critical`; none: no guard (level 2).
    top_k: measure divergences on the rollout's top-K tokens against the full student logits (level 3).
    """

    objective: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    bypass_mode: bool = False
    baseline: str = "all"
    records: str | None = None
    guard: dict[str, Any] = field(default_factory=dict)
    top_k: bool = False

    def __post_init__(self) -> None:
        if self.baseline not in ("all", "accepted"):
            raise ConfigError(f"policy_loss.baseline = {self.baseline!r}: allowed: all, accepted")
        if self.records is not None and not Path(self.records).is_absolute():
            raise ConfigError(
                f"policy_loss.records = {self.records!r} must be an absolute folder that every node sees: Ray's "
                "workers have other working folders"
            )
        GuardSettings.of(self.guard)
        if is_ours(self.loss_mode):
            with_settings(objective_name(self.loss_mode, self.objective), self.settings)


def loss_config(config: Any) -> HoldfastLossConfig:
    """Our settings of an actor; a row's defaults where `policy_loss._target_` is verl's own class.

    Raises ConfigError where verl's distillation calls the loss with its own settings instead of an actor's.
    """
    if not hasattr(config, "policy_loss"):
        raise ConfigError(
            f"distillation_loss.policy_loss_mode = {getattr(config, 'policy_loss_mode', None)}: verl's distillation "
            "calls this loss without an actor's settings; choose one of verl's own (vanilla)"
        )
    policy_loss = config.policy_loss
    if isinstance(policy_loss, HoldfastLossConfig):
        return policy_loss
    return HoldfastLossConfig(loss_mode=policy_loss.loss_mode)


def configured_objective(settings: HoldfastLossConfig) -> Objective:
    """The objective that these settings describe."""
    return with_settings(objective_name(settings.loss_mode, settings.objective), settings.settings)

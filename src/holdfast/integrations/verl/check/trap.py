"""One finding in a composed verl config, and the parts of the config that several searches read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trap:
    """One finding: the setting, what really happens, and what to set instead."""

    setting: str
    effect: str
    fix: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.effect}. {self.fix}"


def correction_of(config: Any) -> Any:
    """verl's rollout correction, empty where the config has none."""
    return config.algorithm.get("rollout_correction") or {}


def rejection_modes(config: Any) -> list[str]:
    """The modes of `rollout_rs`, each once, in their order."""
    modes = (mode.strip() for mode in str(correction_of(config).get("rollout_rs") or "").split(","))
    return list(dict.fromkeys(mode for mode in modes if mode))


def trainer_mode(config: Any) -> str:
    """The v1 trainer that runs; "" where none does."""
    v1 = config.trainer.get("v1") or {}
    return str(v1.get("trainer_mode", "")) if runs_v1(config) else ""


def runs_v1(config: Any) -> bool:
    """Whether verl's v1 trainer runs it: not the old one, nor the asynchronous entry points with their own."""
    return bool(config.trainer.get("use_v1", True)) and not own_trainer(config)


def own_trainer(config: Any) -> bool:
    """Whether this is the config of the fully asynchronous or the one-step-off entry point."""
    return "async_training" in config or "rollout" in config


def loss_mode(config: Any) -> str:
    """The name of the policy loss."""
    return str(config.actor_rollout_ref.actor.policy_loss.loss_mode)

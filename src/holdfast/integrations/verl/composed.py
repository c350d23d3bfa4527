"""verl's own config, composed as `main_ppo` composes it, and checked without starting anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hydra import compose, initialize_config_module
from verl.utils.config import omega_conf_to_dataclass

from holdfast.integrations.verl import traps
from holdfast.integrations.verl.config import loss_config
from holdfast.integrations.verl.loss import level_1_objective
from holdfast.integrations.verl.names import TRAINER_MODE, is_ours


def composed(overrides: Sequence[str], config_name: str = "ppo_trainer") -> Any:
    """The config of `python -m verl.trainer.main_ppo OVERRIDES`; Hydra's errors name the override they refuse."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose(config_name=config_name, overrides=list(overrides))


def report(config: Any) -> Iterator[str]:
    """What would be trained, then every trap, a paragraph each.

    Raises ConfigError for an objective that the chosen level cannot train.
    """
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    settings = loss_config(actor)
    if config.trainer.v1.trainer_mode == TRAINER_MODE:
        from holdfast.integrations.verl.trainer import require

        yield require(config, actor).explain()
    elif is_ours(settings.loss_mode):
        yield level_1_objective(settings).explain()
    yield from map(str, traps.find(config))

"""The trainer's arguments: TRL's by place or by name, and ours as arguments or in a HoldfastGRPOConfig."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from trl import GRPOConfig, GRPOTrainer

from holdfast.errors import ConfigError, nearest
from holdfast.integrations.trl.config import HoldfastGRPOConfig
from holdfast.objectives.objective import Objective


@dataclass(frozen=True)
class Choices:
    """What a trainer takes beside GRPOTrainer's arguments."""

    objective: Any
    rollouts_every: int
    lm_head: str
    top_logprobs: int

    @staticmethod
    def of(
        args: Any,
        objective: str | Objective | None,
        rollouts_every: int | None,
        lm_head: str | None,
        top_logprobs: int | None,
    ) -> Choices:
        """Each argument, or else the field of a HoldfastGRPOConfig, or else the default.

        Raises:
            ConfigError: both are given and differ, there is no objective, or a value that cannot be.
        """
        chosen = Choices(
            _chosen("objective", objective, args, None),
            _chosen("rollouts_every", rollouts_every, args, 1),
            _chosen("lm_head", lm_head, args, "trl"),
            _chosen("top_logprobs", top_logprobs, args, 0),
        )
        if chosen.objective is None:
            raise ConfigError(
                "objective is missing: HoldfastGRPOTrainer(objective='trm+sspo+kl_cov') or "
                "HoldfastGRPOConfig(objective=...); `holdfast presets` lists them"
            )
        if chosen.rollouts_every < 0:
            raise ConfigError(f"rollouts_every = {chosen.rollouts_every}: must be at least 0 (0 writes none)")
        if chosen.top_logprobs < 0:
            raise ConfigError(f"top_logprobs = {chosen.top_logprobs}: must be at least 0 (0: the sampled token alone)")
        if chosen.lm_head not in ("trl", "holdfast"):
            raise ConfigError(f"lm_head = {chosen.lm_head!r}: {nearest(str(chosen.lm_head), ('trl', 'holdfast'))}")
        return chosen


def by_name(others: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """GRPOTrainer's arguments after `train_dataset` by name; they may be given by place, as in TRL."""
    names = list(inspect.signature(GRPOTrainer.__init__).parameters)[5:]
    placed = dict(zip(names, others, strict=False))
    if len(others) > len(names):
        raise TypeError(f"HoldfastGRPOTrainer takes {5 + len(names)} arguments by place, {5 + len(others)} were given")
    if twice := placed.keys() & options.keys():
        raise TypeError(f"HoldfastGRPOTrainer got several values for {', '.join(sorted(twice))}")
    return placed | options


def default_config(model: Any) -> GRPOConfig:
    """What TRL takes where no config is given: a folder named after the model."""
    name = model if isinstance(model, str) else model.config._name_or_path or type(model).__name__
    return GRPOConfig(f"{name.split('/')[-1]}-GRPO")


def _chosen(name: str, given: Any, args: GRPOConfig, default: Any) -> Any:
    """An argument, or the field of a HoldfastGRPOConfig; naming two different values is refused."""
    own = getattr(args, name) if isinstance(args, HoldfastGRPOConfig) else default
    if given is not None and own != default and own != given:
        raise ConfigError(f"{name} is {given!r} as an argument and {own!r} in HoldfastGRPOConfig: keep one of them")
    return own if given is None else given

"""SkyRL's loss registry: `import holdfast.integrations.skyrl` where its workers start, then

    trainer.algorithm.policy_loss_type=holdfast_trm+dapo

SkyRL divides the advantages by the step's tokens or sequences (`trainer.algorithm.loss_reduction`) before its losses
add up, so an objective is exact with the reduction that is its own, and refused with another. Objectives with penalties
or whole-step statistics are refused. Read in, and tested with, skyrl 0.3.0's function contract.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from holdfast.errors import ConfigError
from holdfast.integrations.doors import ONE, Door, batch_of, plain
from holdfast.objectives.objective import Objective
from holdfast.types import TokenStats

PREFIX = "holdfast_"
DOOR = Door("SkyRL", frozenset({"rollout_logprobs"}), "part")
REDUCTIONS = {
    "token_mean": "token_mean",
    "sequence_mean_token_mean": "sequence_mean",
}
"""Our normaliser, and SkyRL's loss_reduction that is the same."""


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    config: Any,
    loss_mask: Tensor | None = None,
    rollout_logprobs: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """SkyRL's policy loss of the objective that `config.policy_loss_type` names.

    Raises:
        ConfigError: an objective that SkyRL cannot feed, or another `loss_reduction` than its own.
    """
    name = str(config.policy_loss_type).removeprefix(PREFIX)
    settings = getattr(config, "holdfast", None) or {}
    chosen = summed(name, str(config.loss_reduction), tuple(sorted(dict(settings).items())))
    if "rollout_logprobs" in chosen.needs and rollout_logprobs is None:
        raise ConfigError(f"SkyRL: {name!r} compares with the engine: set generator.sampling_params.logprobs=1")
    mask = (log_probs.detach() == log_probs.detach()) if loss_mask is None else loss_mask.bool()
    batch = batch_of(mask, advantages, old_logprobs=old_log_probs, rollout_logprobs=rollout_logprobs)
    stats = TokenStats(logprobs=log_probs)
    out = chosen(batch, stats, plan=chosen.prepare(batch, stats.detach(), counts=ONE, validate=False))
    return out.loss, plain(out.metrics)


@functools.cache
def summed(name: str, reduction: str, settings: tuple[tuple[str, Any], ...] = ()) -> Objective:
    """The objective as the sum that SkyRL expects, once its reduction is the objective's own.

    Raises:
        ConfigError: as `policy_loss`.
    """
    chosen = DOOR.objective(name, dict(settings))
    own = REDUCTIONS.get(chosen.normalize.reduction)
    if own is None:
        raise ConfigError(f"SkyRL has no loss_reduction like that of {name!r} ({chosen.normalize.reduction})")
    if reduction != own:
        raise ConfigError(
            f"SkyRL: {name!r} is a {chosen.normalize.reduction}, and trainer.algorithm.loss_reduction={reduction}: set "
            f"it to {own}, or name an objective with another normaliser"
        )
    return DOOR.in_its_units(chosen)


def register(*names: str) -> None:
    """Register `holdfast_NAME` for these presets, or for all that SkyRL can feed, in this process."""
    from skyrl.backends.skyrl_train.utils.ppo_utils import (  # pyright: ignore[reportMissingImports]
        register_policy_loss,
    )

    for name in names or possible():
        register_policy_loss(PREFIX + name)(policy_loss)


def possible() -> list[str]:
    """The presets that SkyRL can feed with one of its reductions."""
    from holdfast.objectives.presets import list_presets, preset

    found = []
    for name in list_presets():
        try:
            summed(name, REDUCTIONS.get(preset(name).normalize.reduction, ""))
        except ConfigError:
            continue
        found.append(name)
    return found

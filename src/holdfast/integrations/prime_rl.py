"""prime-rl's custom loss, in its TOML:

    [trainer.loss]
    type = "custom"
    import_path = "holdfast.integrations.prime_rl.loss"

    [trainer.loss.kwargs]
    objective = "trm+dapo"

The loss sees one sequence and returns a sum; prime-rl divides by the step's trained tokens. So objectives with a mean
over tokens are exact, those with a mean over sequences differ by one constant (sequences per token, which a learning
rate absorbs), and those that look at the whole step are refused. Read at prime-rl of August 2026.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from holdfast.integrations.doors import ONE, Door, batch_of
from holdfast.objectives.objective import Objective
from holdfast.objectives.presets import preset
from holdfast.types import TokenStats

DOOR = Door("prime-rl", frozenset({"rollout_logprobs", "ref_logprobs"}), "sequence")


@dataclass
class Outputs:
    """What prime-rl's LossOutputs hold, for where that package is not installed."""

    loss: Tensor
    metrics: dict[str, Tensor]


def loss(inputs: Any, *, objective: str = "trm+dapo", **settings: Any) -> Any:
    """prime-rl's LossInputs in, its LossOutputs out: the sum over one sequence's tokens.

    The old policy is the engine's, as in prime-rl's own losses. `loss_weights` multiply the advantages.

    Raises:
        ConfigError: the objective needs what prime-rl does not hand over.
    """
    chosen = _objective(objective, tuple(sorted(settings.items())))
    mask = inputs.loss_mask.bool()[None]
    current = inputs.trainer_logprobs[None].float()
    sampled = inputs.inference_logprobs[None].to(current.dtype)
    advantages = inputs.advantages[None].to(current.dtype)
    if getattr(inputs, "loss_weights", None) is not None:
        advantages = advantages * inputs.loss_weights[None]
    reference = getattr(inputs, "ref_logprobs", None)
    batch = batch_of(
        mask,
        advantages,
        old_logprobs=sampled,
        rollout_logprobs=sampled,
        ref_logprobs=None if reference is None else reference[None].to(current.dtype),
    )
    stats = TokenStats(logprobs=current)
    out = chosen(batch, stats, plan=chosen.prepare(batch, stats.detach(), counts=ONE, validate=False))
    metrics = {f"holdfast/{name}": torch.as_tensor(value) for name, value in out.metrics.items()}
    return _outputs()(loss=out.loss, metrics=metrics)


def exact(objective: str | Objective, **settings: Any) -> bool:
    """Whether prime-rl's division by tokens is the objective's own, or differs from it by a constant.

    Raises:
        ConfigError: as from the loss.
    """
    chosen = preset(objective, **settings) if isinstance(objective, str) else objective
    return DOOR.objective(chosen, {}).normalize.reduction == "token_mean"


@functools.cache
def _objective(name: str, settings: tuple[tuple[str, Any], ...]) -> Objective:
    return DOOR.objective(name, dict(settings))


@functools.cache
def _outputs() -> Any:
    try:
        from prime_rl.trainer.rl.loss import LossOutputs  # pyright: ignore[reportMissingImports]
    except ImportError:
        return Outputs
    return LossOutputs

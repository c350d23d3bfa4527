"""Masks and weights for slime and miles:

    HOLDFAST_OBJECTIVE=trm python train.py ... --use-tis \\
        --custom-tis-function-path holdfast.integrations.slime.correction

slime keeps its own clip; what is taken from the objective are its masks and weights that compare the trainer's old
policy with the engine, which is what a trust region on the mismatch is. A rejected token's loss becomes 0 and stays in
the denominator. Read at slime and miles of August 2026; tested on the function's contract.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
from torch import Tensor

from holdfast.errors import ConfigError, DataError
from holdfast.integrations.doors import Door, batch_of, padded
from holdfast.objectives.objective import Objective
from holdfast.types import TokenStats

DOOR = Door("slime", frozenset({"rollout_logprobs"}), "part")
VARIABLE = "HOLDFAST_OBJECTIVE"
DEFAULT = "trm"


def correction(
    args: Any,
    *,
    pg_loss: Tensor,
    train_log_probs: list[Tensor],
    rollout_log_probs: list[Tensor],
    loss_masks: list[Tensor],
    response_lengths: list[int],
    **others: Any,
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """slime's correction function: (pg_loss · mask · weight, masks as they were, metrics per token).

    Raises:
        ConfigError: an objective that slime cannot feed.
        DataError: log-probabilities that are no whole responses, as with context parallelism.
    """
    lengths = [row.numel() for row in train_log_probs]
    if lengths != [int(length) for length in response_lengths]:
        raise DataError(
            f"slime handed over {lengths} log-probabilities for responses of {[*map(int, response_lengths)]} tokens: a "
            "trust region on whole sequences needs them whole; set --context-parallel-size 1"
        )
    objective = chosen(os.environ.get(VARIABLE, DEFAULT))
    old, rollout = padded(train_log_probs, torch.float32), padded(rollout_log_probs, torch.float32)
    mask = padded(loss_masks).bool()
    batch = batch_of(mask, torch.zeros_like(old), old_logprobs=old, rollout_logprobs=rollout)
    keep, weight = objective.correction(batch, TokenStats(logprobs=old))
    inside = padded([torch.ones_like(row, dtype=torch.bool) for row in train_log_probs])
    metrics = {"holdfast_kept": keep[inside].float(), "holdfast_weight": weight[inside]}
    factor = torch.where(mask, keep * weight, 1.0)[inside]
    return pg_loss * factor.to(pg_loss.dtype), loss_masks, metrics


@functools.cache
def chosen(name: str) -> Objective:
    """The objective whose masks and weights are taken.

    Raises:
        ConfigError: one that slime cannot feed, or without any.
    """
    objective = DOOR.objective(name, {})
    if not objective.masks and not objective.weights:
        raise ConfigError(f"{VARIABLE}={name}: it has neither masks nor weights, and slime keeps its own clip")
    return objective

"""Checks of batches against what an objective needs; every message names the value, what is allowed, and the fix."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.errors import DataError
from holdfast.objectives.parts.terms import missing
from holdfast.types import Batch, TokenStats


def check_kinds(batch: Batch, stats: TokenStats | None) -> None:
    """Raise DataError for a dictionary, or anything else, in the place of a batch or its statistics."""
    for value, kind in ((batch, Batch), (stats, TokenStats)):
        if value is not None and not isinstance(value, kind):
            raise DataError(
                f"a {type(value).__name__} is no {kind.__name__}: make one, holdfast.{kind.__name__}(...) with its "
                f"fields as keywords ({kind.__name__}(**values) where it is a dictionary of them)"
            )
    if batch is None:
        raise DataError("None is no Batch: make one, holdfast.Batch(...)")


def stats_or_old(batch: Batch, stats: TokenStats | None, needs: frozenset[str]) -> TokenStats:
    """`stats`, or the old policy standing in for the current one where whole-batch statistics need no more."""
    if stats is not None:
        return stats
    if batch.old_logprobs is None:
        raise DataError("prepare() without stats takes the old policy for the current one: pass Batch.old_logprobs")
    for name in sorted(needs):
        if name in TokenStats.__dataclass_fields__:
            raise DataError(f"prepare() without stats cannot know {name}: {missing(name, 'this objective')}")
    return TokenStats(logprobs=batch.old_logprobs)


def validate(batch: Batch, stats: TokenStats, needs: frozenset[str]) -> None:
    """Raise DataError where the batch cannot be trained on: missing fields, shapes, NaN or positive logprobs."""
    for name in sorted(needs):
        owner = stats if name in TokenStats.__dataclass_fields__ else batch
        if getattr(owner, name) is None:
            raise DataError(missing(name, "this objective"))
    mask = batch.response_mask
    check_shape("TokenStats.logprobs", stats.logprobs, tuple(mask.shape), "Batch.response_mask")
    for name, value in vars(stats).items():
        if value is not None and name != "logprobs":
            check_shape(f"TokenStats.{name}", value, tuple(mask.shape), "Batch.response_mask")
            check_finite(f"TokenStats.{name}", value, mask)
    check_logprobs("TokenStats.logprobs", stats.logprobs, mask)
    for name in ("old_logprobs", "rollout_logprobs", "ref_logprobs", "teacher_logprobs"):
        value = getattr(batch, name)
        if value is not None:
            check_logprobs(f"Batch.{name}", value, mask)
    advantages = batch.advantages if batch.advantages.ndim == 2 else batch.advantages[:, None].expand(mask.shape)
    check_finite("Batch.advantages", advantages, mask)


def check_shape(name: str, value: Tensor, expected: tuple[int, ...], source: str) -> None:
    """Raise DataError unless the shape is as expected."""
    if tuple(value.shape) != expected:
        raise DataError(f"{name} has shape {tuple(value.shape)}, but {source} has {expected}: they must be the same")


def check_finite(name: str, value: Tensor, mask: Tensor) -> None:
    """Raise DataError for NaN or infinity where the mask is True."""
    _refuse(name, mask & ~torch.isfinite(value), value, "not finite", "masked-out tokens may hold anything")


def check_logprobs(name: str, value: Tensor, mask: Tensor) -> None:
    """Raise DataError for NaN, infinite or positive log-probabilities where the mask is True."""
    check_finite(name, value, mask)
    # Engines round: a probability of 1 may come back as +1e-6.
    _refuse(name, mask & (value > 1e-4), value, "positive", "log-probabilities are at most 0: were these logits?")


def _refuse(name: str, bad: Tensor, value: Tensor, what: str, hint: str) -> None:
    count = int(bad.sum())
    if count:
        row, column = (int(i) for i in bad.nonzero()[0])
        raise DataError(
            f"{name} is {what} at {count} response token{'s' if count > 1 else ''}, first at sequence {row}, token "
            f"{column} (value {float(value[row, column]):g}): {hint}"
        )

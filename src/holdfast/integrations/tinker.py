"""Tinker's custom losses: `training_client.forward_backward_custom(data, tinker_loss("trm+dapo"))`.

Also for services with the same client interface. The function sees all sequences of the call, so every objective that
needs no entropy and no whole distribution is exact, whole-batch statistics included. Read in tinker 0.38.0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from holdfast.errors import DataError
from holdfast.integrations.doors import Door, batch_of, padded, plain
from holdfast.objectives.objective import Objective
from holdfast.rollout.store import write_rollouts
from holdfast.types import Batch, LossOutput, Rollout, TokenStats

DOOR = Door("Tinker", frozenset({"rollout_logprobs", "ref_logprobs"}), "step")
SAMPLED, MASK, TARGETS = "logprobs", "mask", "target_tokens"

CustomLoss: TypeAlias = Callable[[Sequence[Any], Sequence[Tensor]], tuple[Tensor, dict[str, float]]]


def tinker_loss(
    objective: str | Objective,
    *,
    old: Literal["sampled", "current"] = "sampled",
    records: Path | str | None = None,
    **settings: Any,
) -> CustomLoss:
    """A loss for `forward_backward_custom`.

    Each datum's `loss_fn_inputs` hold `advantages`, `logprobs` (what the sampler gave, as in Tinker's own losses) and,
    where not every token is trained on, `mask` (or `weights`); `ref_logprobs` and `old_logprobs` where the objective
    reads them. Without `old_logprobs` PPO's denominator is the sampling policy (`old = "sampled"`), or the current one
    ("current", for one step per batch). With `records` each call writes its sequences to a file of that folder, for
    the audit; calls count as steps, and the datums have to hold `target_tokens`.

    Raises:
        ConfigError: the objective needs entropy, whole distributions or bounds, which Tinker does not hand over.
        DataError: from the loss: a field that a datum lacks, or of another length.
    """
    chosen, calls = DOOR.objective(objective, settings), itertools.count(1)

    def loss(data: Sequence[Any], logprobs: Sequence[Tensor]) -> tuple[Tensor, dict[str, float]]:
        current = padded([row.reshape(-1) for row in logprobs])
        lengths = [row.numel() for row in logprobs]

        def column(name: str, needed: bool) -> Tensor | None:
            rows = [_field(datum, name, length) for datum, length in zip(data, lengths, strict=True)]
            if any(row is None for row in rows):
                if needed or any(row is not None for row in rows):
                    raise DataError(f"loss_fn_inputs[{name!r}] is missing in datum {rows.index(None)}")
                return None
            return padded([row for row in rows if row is not None], current.dtype).to(current.device)

        inside = padded([torch.ones(length, dtype=torch.bool) for length in lengths]).to(current.device)
        weights = column(MASK, False)
        weights = column("weights", False) if weights is None else weights
        mask = inside if weights is None else inside & (weights > 0)
        sampled, advantages = column(SAMPLED, True), column("advantages", True)
        assert advantages is not None
        given_old = column("old_logprobs", False)
        if given_old is None and old == "sampled":
            given_old = sampled
        batch = batch_of(
            mask,
            advantages,
            old_logprobs=given_old,
            rollout_logprobs=sampled,
            ref_logprobs=column("ref_logprobs", "ref_logprobs" in chosen.needs),
        )
        out = chosen(batch, TokenStats(logprobs=current))
        if records is not None:
            step, targets = next(calls), column(TARGETS, True)
            assert targets is not None
            path = Path(records) / f"call_{step:06d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_rollouts(path, _rollouts(batch, current.detach(), out, targets.long(), lengths, step))
        # Every row gets a gradient, also where nothing of it is trained on: Tinker asks for it.
        return out.loss + 0.0 * current.sum(), plain(out.metrics)

    return loss


def _rollouts(
    batch: Batch, current: Tensor, out: LossOutput, targets: Tensor, lengths: Sequence[int], step: int
) -> Iterator[Rollout]:
    """One per datum: the response begins with the first token that is trained on."""
    sampled = batch.rollout_logprobs
    assert sampled is not None
    for row, length in enumerate(lengths):
        trained = batch.response_mask[row, :length]
        if not trained.any():
            continue
        start = int(trained.int().argmax())

        def cut(values: Tensor, row: int = row, start: int = start, length: int = length) -> tuple[Any, ...]:
            return tuple(values[row, start:length].tolist())

        yield Rollout(
            prompt_ids=tuple(targets[row, :start].tolist()),
            response_ids=cut(targets),
            rollout_logprobs=cut(sampled),
            trainer_logprobs=cut(current),
            response_mask=cut(batch.response_mask),
            advantages=cut(batch.advantages),
            trust_mask=cut(out.trust_mask),
            step=step,
            extra={"source": "tinker"},
        )


def _field(datum: Any, name: str, length: int) -> Tensor | None:
    value = datum.loss_fn_inputs.get(name)
    if value is None:
        return None
    row = (value.to_torch() if hasattr(value, "to_torch") else torch.as_tensor(value)).reshape(-1)
    if row.numel() != length:
        raise DataError(f"loss_fn_inputs[{name!r}] has {row.numel()} numbers, the sequence has {length} tokens")
    return row

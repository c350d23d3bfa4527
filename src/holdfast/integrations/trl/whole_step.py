"""TRL's tensors as ours, and the statistics of one whole optimiser step over all micro-batches and ranks.

TRL keeps a generation's micro-batches in a buffer, and an optimiser step is a run of them, so the whole step is known
before its first gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.errors import DataError
from holdfast.integrations.turns import turn_ids
from holdfast.objectives import checks
from holdfast.objectives.objective import Objective, Plan
from holdfast.objectives.whole_step import stand_in
from holdfast.types import Batch, Counts, TokenStats


def batch_of(inputs: Mapping[str, Any]) -> Batch:
    """TRL's inputs of one micro-batch as a Batch; tool tokens and padding are outside the response mask."""
    mask = inputs["completion_mask"].bool()
    if "tool_mask" in inputs:
        mask = mask & inputs["tool_mask"].bool()
    return Batch(
        advantages=inputs["advantages"],
        response_mask=mask,
        old_logprobs=inputs.get("old_per_token_logps"),
        rollout_logprobs=inputs.get("sampling_per_token_logps"),
        ref_logprobs=inputs.get("ref_per_token_logps"),
        turn_ids=turn_ids(mask),
        sequence_ids=inputs["sequence_ids"],
    )


def join(records: Sequence[Any]) -> Any:
    """Batches, or token statistics, of several micro-batches below each other."""
    values = {f.name: [getattr(r, f.name) for r in records] for f in dataclasses.fields(records[0])}
    joined = {name: torch.cat(parts) for name, parts in values.items() if parts[0] is not None}
    return dataclasses.replace(records[0], **joined)


def check(batch: Batch, objective: Objective, where: str) -> None:
    """Raise DataError for what cannot be trained on: missing or bad log-probabilities of sampled tokens.

    The log-probabilities of tool tokens may be anything.
    """
    rollout = batch.rollout_logprobs
    if rollout is None and "rollout_logprobs" in objective.needs:
        raise DataError(
            f"{where}: objective {objective.name!r} needs the log-probabilities that the engine sampled with, and this "
            "generation recorded none; use vLLM (GRPOConfig.use_vllm), a rollout_func that returns logprobs, or a "
            "preset without a mask or weight on the rollout policy"
        )
    if rollout is not None:
        bad = batch.response_mask & ~torch.isfinite(rollout)
        if bool(bad.any()):
            row, column = (int(i) for i in bad.nonzero()[0])
            assert batch.sequence_ids is not None
            raise DataError(
                f"{where}: the engine gave {float(rollout[row, column])} as log-probability of token {column} of "
                f"sequence {int(batch.sequence_ids[row])}, which it sampled itself ({int(bad.sum())} such tokens in "
                f"{int(bad.any(dim=-1).sum())} sequences); only tool tokens may lack one: mark them in tool_mask or "
                "env_mask, or have the engine record its logprobs (vLLM: processed_logprobs)"
            )
    try:
        checks.validate(batch, stand_in(batch.response_mask)[1], objective.needs)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def plan_of(objective: Objective, batch: Batch, stats: TokenStats | None, accelerator: Any, step: int) -> Plan:
    """The plan of the whole optimiser step, over all ranks, cut to this rank's rows.

    `stats` is the current policy on this rank's rows; None where it makes no difference (`whole_step_parts` is empty).
    """
    if stats is None:
        everything = stand_in(everywhere(batch.response_mask, accelerator))
    else:
        everything = _everywhere(batch, accelerator), _everywhere(stats, accelerator)
    counts = counts_of(everything[0].response_mask)
    plan = objective.prepare(*everything, step=step, counts=counts, validate=False)
    rows, length = batch.response_mask.shape
    first = rows * accelerator.process_index
    return plan.select(slice(first, first + rows), length)


def counts_of(mask: Bool[Tensor, "N T"]) -> Counts:
    """Every completion counts, as in TRL, even one that `mask_truncated_completions` has emptied."""
    return Counts(sequences=mask.new_tensor(len(mask), dtype=torch.long), tokens=mask.sum())


def everywhere(values: Tensor, accelerator: Any) -> Tensor:
    """The rows of all ranks in the order of the ranks, padded to the longest."""
    if accelerator.num_processes == 1:
        return values
    # Padding makes integers of booleans, on the ranks that pad only: the ranks would send different types.
    sent = values.to(torch.uint8) if values.dtype == torch.bool else values
    if sent.ndim > 1:
        sent = accelerator.pad_across_processes(sent, dim=1)
    return accelerator.gather(sent).to(values.dtype)


def advantages_of(
    objective: Objective, rewards: Float[Tensor, " N"], group: int, mask: Bool[Tensor, "N T"]
) -> Float[Tensor, "N T"]:
    """The objective's advantages for a generation whose prompts have `group` responses each.

    A response without any reward (NaN) is left out of its group's baseline and has advantage 0, as in TRL.
    """
    scored = ~rewards.isnan()
    group_ids = torch.arange(len(rewards), device=rewards.device) // group
    advantages = torch.zeros(mask.shape, dtype=rewards.dtype, device=rewards.device)
    if bool(scored.any()):
        advantages[scored] = objective.estimate_advantages(rewards[scored], group_ids[scored], mask[scored])
    return advantages


def _everywhere(record: Any, accelerator: Any) -> Any:
    values = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    return dataclasses.replace(
        record, **{name: everywhere(value, accelerator) for name, value in values.items() if value is not None}
    )

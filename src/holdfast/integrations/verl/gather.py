"""The plan of an optimiser step over all ranks: what is gathered for it, and how many bytes that is."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Int
from torch import Tensor

from holdfast.integrations.verl.levels import TOP_K_FIELDS
from holdfast.objectives.metrics import LengthQuartiles
from holdfast.objectives.objective import Objective, Plan
from holdfast.objectives.whole_step import stand_in
from holdfast.types import Batch, Counts, TokenStats

_BASE = {"advantages": 4, "response_mask": 1, "old_logprobs": 4, "logprobs": 4}
_BYTES = {"turn_ids": 8}

WORK = 52
"""Bytes per token that the statistics take for a moment: ratios, covariances and draws, several of them 8 bytes."""


def plan_of(objective: Objective, batch: Batch, stats: TokenStats | None, step: int, group: Any) -> Plan:
    """The plan of the whole step over the ranks of `group`, cut to this rank's rows.

    `stats` is the current policy on this rank's rows; None where no statistic looks at it.
    """
    if stats is None:
        plan = _plan_of_lengths(objective, everywhere(batch.response_mask.sum(dim=-1), group), step)
    else:
        looking, places = looking_at_the_step(objective)
        everything = whole_step(looking, batch, stats, group)
        plan = looking.prepare(*everything, step=step, validate=False)
        prepared: list[Tensor | None] = [None] * len(objective.parts)
        for place, statistic in zip(places, plan.prepared, strict=True):
            prepared[place] = statistic
        plan = dataclasses.replace(plan, prepared=tuple(prepared))
    rows, length = batch.response_mask.shape
    first = rows * (dist.get_rank(group) if _several(group) else 0)
    return plan.select(slice(first, first + rows), length)


def looking_at_the_step(objective: Objective) -> tuple[Objective, list[int]]:
    """The objective with only the parts that have a statistic of the whole step, and their places among its parts.

    A normaliser over what is accepted needs every mask's verdict, so there all parts stay.
    """
    statistics = objective.prepare(*stand_in(torch.ones(1, 1, dtype=torch.bool)), validate=False).prepared
    if objective.normalize.over == "accepted":
        return objective, list(range(len(statistics)))
    places = [place for place, statistic in enumerate(statistics) if statistic is not None]
    masks, weights = len(objective.masks), len(objective.masks) + len(objective.weights)
    kept = [objective.parts[place] for place in places]
    families = [0 if place < masks else 1 if place < weights else 2 for place in places]
    chosen = [tuple(p for p, family in zip(kept, families, strict=True) if family == which) for which in range(3)]
    return objective.with_(masks=chosen[0], weights=chosen[1], penalties=chosen[2]), places


def whole_step(objective: Objective, batch: Batch, stats: TokenStats, group: Any) -> tuple[Batch, TokenStats]:
    """The rows of all ranks in their order, with those fields that the objective reads.

    Tokens travel without padding; the result is padded to the longest response of the step.
    """
    mask, needs = batch.response_mask, objective.needs
    # Tool tokens stand between the first and the last response token; behind the last there is only padding.
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    inside = places <= (mask * places).amax(dim=-1, keepdim=True)
    lengths = everywhere(inside.sum(dim=-1), group)
    width = int(everywhere(torch.tensor([mask.shape[1]], device=mask.device), group).max())
    wanted = {name for name in (*_BASE, "sequence_ids") if name != "logprobs"} | (needs - TOP_K_FIELDS)
    fields = {
        f.name: _rows(value, inside, lengths, width, group)
        for f in dataclasses.fields(batch)
        if f.name in wanted and (value := getattr(batch, f.name)) is not None
    }
    known = {
        f.name: _rows(value, inside, lengths, width, group)
        for f in dataclasses.fields(stats)
        if (f.name == "logprobs" or f.name in needs) and (value := getattr(stats, f.name)) is not None
    }
    # Bounds exist only once the loss is called: masks on them are decided there, statistics do not read them.
    known |= dict.fromkeys(TOP_K_FIELDS & needs, torch.zeros_like(known["logprobs"]))
    return dataclasses.replace(batch, **dict.fromkeys(_optional(batch)) | fields), TokenStats(**known)


def bytes_per_token(objective: Objective) -> int:
    """Bytes on each rank, for a moment, per response token of the step, padded to the step's longest response."""
    looking, _ = looking_at_the_step(objective)
    names = set(_BASE) | {name for name in looking.needs if name not in TOP_K_FIELDS and name != "sequence_ids"}
    return sum(_BASE.get(name, _BYTES.get(name, 4)) for name in names) + WORK


def everywhere(values: Tensor, group: Any) -> Tensor:
    """The rows of all ranks in the order of the ranks; every rank has equally many."""
    if not _several(group):
        return values
    kind = values.dtype
    values = values.contiguous() if kind != torch.bool else values.byte()
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, values, group=group)
    return torch.cat(parts).to(kind)


def _rows(values: Tensor, inside: Bool[Tensor, "b T"], lengths: Int[Tensor, " B"], width: int, group: Any) -> Tensor:
    """The rows of all ranks, [B] or padded [B, width], of this rank's rows."""
    if values.ndim == 1:
        return everywhere(values, group)
    ranks = dist.get_world_size(group) if _several(group) else 1
    counts = lengths.view(ranks, -1).sum(dim=-1)
    tokens = values[inside]
    packed = everywhere(torch.nn.functional.pad(tokens, (0, int(counts.max()) - len(tokens))), group)
    real = torch.arange(int(counts.max()), device=values.device) < counts[:, None]
    out = values.new_zeros(len(lengths), width)
    out[torch.arange(width, device=values.device) < lengths[:, None]] = packed[real.flatten()]
    return out


def _plan_of_lengths(objective: Objective, lengths: Int[Tensor, " B"], step: int) -> Plan:
    """The plan of an objective that looks at no policy: counts and quartiles, from the lengths of all sequences."""
    counts = Counts(sequences=(lengths > 0).sum(), tokens=lengths.sum())
    longest = torch.arange(int(lengths.max()), device=lengths.device)
    return Plan(
        counts=counts,
        accepted=counts,
        quartiles=LengthQuartiles.of(longest < lengths[:, None]),
        covariance_share=torch.zeros((), device=lengths.device),
        prepared=(None,) * len(objective.parts),
        step=step,
    )


def _optional(batch: Batch) -> list[str]:
    required = ("advantages", "response_mask")
    return [f.name for f in dataclasses.fields(batch) if f.name not in required]


def _several(group: Any) -> bool:
    return group is not None and dist.get_world_size(group) > 1

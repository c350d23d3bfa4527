"""What TRL's log shows of a step: TRL's names where the number is TRL's, the trust region under its own.

TRL averages its numbers over micro-batches; these are of the whole optimiser step, over all ranks, so the two are equal
where a step is one micro-batch or all micro-batches have equally many tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from holdfast.core.ratios import pool
from holdfast.objectives.metrics import LengthQuartiles
from holdfast.objectives.objective import Objective, Plan
from holdfast.objectives.parts.gates import Box, Clip, Gamma, Identity, One
from holdfast.objectives.parts.penalties import EntropyBonus, Kl
from holdfast.objectives.parts.terms import Terms
from holdfast.objectives.policy_term import gated
from holdfast.types import STATS_BOUNDS, Batch, TokenStats

_TRUST_REGION = {
    "masked_sequences": "rejected_sequences",
    "masked_tokens": "rejected_tokens",
    **{f"masked_sequences_q{q}": f"rejected_sequences_length_q{q}" for q in range(1, 5)},
}


def log_names(metrics: Mapping[str, Tensor], objective: Objective, quartiles: LengthQuartiles) -> dict[str, Tensor]:
    """An objective's metrics under the names of the log, without those that this objective makes constants.

    Rejections and the drift from the engine are `trust_region/...`, the rest `holdfast/...`; `entropy` is TRL's own.
    A quarter of response lengths that no response of the step falls into has no share, and is left out.
    """
    named = {}
    empty = {f"masked_sequences_q{q + 1}" for q, size in enumerate(quartiles.sizes.tolist()) if not size}
    for name, value in metrics.items():
        if name in empty or _is_constant(name, objective):
            continue
        if name == "entropy":
            named[name] = value
        elif name in _TRUST_REGION or name.startswith("rollout_"):
            named[f"trust_region/{_TRUST_REGION.get(name, name)}"] = value
        else:
            named[f"holdfast/{name}"] = value
    return named


def _is_constant(name: str, objective: Objective) -> bool:
    if name.endswith("_square_mean"):
        return True
    if name.startswith("masked_"):
        return not objective.masks
    if name == "clip_share":
        return isinstance(objective.gate, Identity | One)
    return not objective.weights and name in ("ess", "weight_mean", "weight_max")


def trl_numbers(
    objective: Objective, batch: Batch, stats: TokenStats, plan: Plan, loss: Tensor, accelerator: Any
) -> dict[str, float]:
    """What TRL logs of a loss, and the bounds that the engine's likeliest tokens prove; `loss` is this rank's share.

    `kl` to the reference policy (the estimator of the objective's own penalty, without its coefficient),
    `policy_loss` (without the entropy bonus) and `entropy_coef`, `clip_ratio/...` for a clip of θ/old,
    `cispo_clip_ratio`, `vespo/phi_seq_mean`, and `trust_region/{kl_lower,tv_lower,tv_upper}_{mean,max}`.
    """
    with torch.no_grad():
        terms = Terms.of(batch, stats.detach(), objective.denominator)
        means = dict(_reference(objective, terms)) | dict(_clips(objective, terms)) | dict(_bounds(terms))
        highest = {f"{name}_max": _highest(values) for name, (values, _) in means.items() if name in _BOUND_NAMES}
        if "clip_ratio/low_mean" in means:
            low, high = (_by_sequence(*means[f"clip_ratio/{side}_mean"]) for side in ("low", "high"))
            highest |= {"clip_ratio/low_min": -_highest(-low), "clip_ratio/high_max": _highest(high)}
        sums = {name: torch.stack([values[counted].sum(), counted.sum()]) for name, (values, counted) in means.items()}
        sums["loss"] = torch.stack([_without_bonus(objective, terms, plan, loss), loss.new_ones(())])
        totals = accelerator.reduce(torch.stack([total.float() for total in sums.values()]), reduction="sum")
        found = {
            f"{name}_mean" if name in _BOUND_NAMES else name: float(total / count.clamp(min=1))
            for name, (total, count) in zip(sums, totals, strict=True)
        }
        found |= _extremes(highest, accelerator)
    policy_loss = found.pop("loss") * accelerator.num_processes
    for part in objective.penalties:
        if isinstance(part, EntropyBonus):
            found |= {"policy_loss": policy_loss, "entropy_coef": part.alpha * part.anneal.factor(plan.step)}
    return found


_BOUND_NAMES = {f"trust_region/{short}" for short in STATS_BOUNDS.values()}


def _reference(objective: Objective, terms: Terms) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    for part in objective.penalties:
        if isinstance(part, Kl) and part.policy == "ref" and part.coefficient:
            yield "kl", (part.penalty(terms, None, 0) / part.coefficient, terms.mask)
            return


def _bounds(terms: Terms) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    for name, short in STATS_BOUNDS.items():
        if (bound := getattr(terms.stats, name)) is not None:
            yield f"trust_region/{short}", (torch.where(terms.mask, bound, 0), terms.mask)


def _clips(objective: Objective, terms: Terms) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Which ratios the gate limits, as TRL counts them: per token, or per sequence where the ratio is a sequence's."""
    gate, how = objective.gate, objective.pool
    if objective.denominator != "old" or how.order != "before" or how.over.startswith("turn"):
        return
    log_ratio, counted, advantages = terms.log_ratio("old"), terms.mask, terms.advantages
    if how.over != "token":
        log_ratio = pool(log_ratio, terms.mask, how.over, None)[:, :1]
        counted, advantages = terms.mask.any(dim=-1, keepdim=True), _first(terms.advantages, terms.mask)
    ratio = log_ratio.exp()
    if isinstance(gate, Clip):
        ratio = ratio if gate.dual is None else ratio.clamp(max=gate.dual)
        low, high = (ratio < 1 - gate.low) & (advantages < 0), (ratio > 1 + gate.high) & (advantages > 0)
        for name, clipped in (("low", low), ("high", high), ("region", low | high)):
            yield f"clip_ratio/{name}_mean", (clipped.float(), counted)
    elif isinstance(gate, Box) and objective.carrier == "score" and gate.high is not None and not gate.relative:
        yield "cispo_clip_ratio", (((ratio > gate.high) & (advantages > 0)).float(), counted)
    elif isinstance(gate, Gamma) and how.over == "sequence_sum":
        value = gated(terms, gate, how, objective.carrier, objective.denominator).value
        yield "vespo/phi_seq_mean", (_first(value.expand(terms.mask.shape), terms.mask), counted)


def _without_bonus(objective: Objective, terms: Terms, plan: Plan, loss: Tensor) -> Tensor:
    """The loss without entropy bonuses: what TRL calls the policy loss."""
    first = len(objective.masks) + len(objective.weights)
    weights = objective.normalize.weights(terms.mask, plan.counts, terms.logprobs.dtype)
    for part, prepared in zip(objective.penalties, plan.prepared[first:], strict=True):
        if isinstance(part, EntropyBonus):
            loss = loss - (weights * torch.where(terms.mask, part.penalty(terms, prepared, plan.step), 0)).sum()
    return loss


def _first(values: Tensor, mask: Tensor) -> Tensor:
    """[B, 1] the value at the first token that counts; 0 for a row without one."""
    return torch.where(mask.any(dim=-1, keepdim=True), values.gather(1, mask.long().argmax(dim=-1, keepdim=True)), 0)


def _by_sequence(values: Tensor, counted: Tensor) -> Tensor:
    """The mean of each sequence that has any token."""
    present = counted.any(dim=-1)
    return (torch.where(counted, values, 0).sum(dim=-1) / counted.sum(dim=-1).clamp(min=1))[present]


def _highest(values: Tensor) -> Tensor:
    return values.max() if values.numel() else values.new_full((), -torch.inf)


def _extremes(highest: Mapping[str, Tensor], accelerator: Any) -> dict[str, float]:
    """Maxima over the ranks, and minima under names that end so."""
    if not highest:
        return {}
    signs = torch.tensor([-1.0 if name.endswith("_min") else 1.0 for name in highest])
    here = torch.stack([value.float() for value in highest.values()])
    signs = signs.to(here.device)
    everywhere = accelerator.gather((here * signs)[None]).view(-1, len(highest)).amax(dim=0) * signs
    return {name: float(value) for name, value in zip(highest, everywhere, strict=True) if torch.isfinite(value)}

"""Level 2: one optimiser step as verl's engine runs it, with statistics over all its micro-batches and ranks."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from verl.utils.metric import AggregationType, Metric
from verl.workers.utils.padding import no_padding_2_padding

from holdfast.errors import DataError
from holdfast.integrations.turns import turn_ids
from holdfast.integrations.verl.levels import TOP_K_FIELDS
from holdfast.integrations.verl.loss import VERL_NAMES, clip_fractions
from holdfast.integrations.verl.top_k import top_k_bounds
from holdfast.objectives import checks
from holdfast.objectives.objective import Objective, Plan
from holdfast.objectives.whole_step import stand_in, whole_step_parts
from holdfast.types import Batch, LossOutput, TokenStats

ROW = "holdfast_row"
"""Where a sequence of a micro-batch stands in this rank's share of the step."""

SEQUENCE = "holdfast_sequence"
"""Its `sequence_ids`, made once a step."""

_FROM_THE_WHOLE_STEP = ("ess", "effective_tokens")
"""Ratios of sums, made once the sums are whole (`trainer.derived`)."""


@dataclass
class StepLoss:
    """verl's loss function for one optimiser step: called per micro-batch, first (level 3) with the logits.

    `seen` collects what each micro-batch was, without its graph, where the tokens are recorded.
    """

    objective: Objective
    plan: Plan
    ranks: int
    recording: bool = False
    seen: list[tuple[Int[Tensor, " b"], Batch, TokenStats, LossOutput]] = field(default_factory=list)

    def __call__(
        self,
        model_output: Any = None,
        data: Any = None,
        dp_group: Any = None,
        student_logits: Tensor | None = None,
        data_format: str = "thd",
    ) -> Any:
        """(loss, metrics) of a micro-batch; or, given `student_logits`, the bounds that its top-K proves."""
        if student_logits is not None:
            return top_k_bounds(student_logits, data)
        batch, stats, rows = batch_of(data), stats_of(model_output, data), data[ROW]
        plan = self.plan.select(rows, batch.response_mask.shape[1])
        out = self.objective(batch, stats, plan=plan)
        if self.recording:
            self.seen.append((rows, batch, stats.detach(), dataclasses.replace(out, loss=out.loss.detach())))
        metrics = dict(out.metrics) | top_k_metrics(batch, stats, self.plan)
        if not whole_step_parts(self.objective):
            del metrics["covariance_share"]  # made without looking at the policy
        fractions = clip_fractions(self.objective, batch, stats, self.plan.counts.tokens.clamp(min=1))
        return out.loss * self.ranks, verl_metrics(metrics, fractions, out.loss, self.ranks)


def batch_of(data: Any) -> Batch:
    """verl's nested tensors of a micro-batch, padded, under our names; response token t is column t."""
    mask = _padded(data["response_mask"]).bool()
    return Batch(
        advantages=_padded(data["advantages"]),
        response_mask=mask,
        old_logprobs=_padded(data["old_log_probs"]),
        rollout_logprobs=_optional(data, "rollout_log_probs"),
        ref_logprobs=_optional(data, "ref_log_prob"),
        turn_ids=turn_ids(mask),
        sequence_ids=data[SEQUENCE],
    )


def stats_of(model_output: Mapping[str, Any], data: Any) -> TokenStats:
    """The forward pass of a micro-batch, cut to the response tokens."""
    names = {"logprobs": "log_probs", "entropy": "entropy"} | {name: name for name in TOP_K_FIELDS}
    return TokenStats(
        **{
            ours: no_padding_2_padding(model_output[theirs], data)
            for ours, theirs in names.items()
            if theirs in model_output
        }
    )


def sequence_ids(data: Any) -> Int[Tensor, " B"]:
    """A number per sequence from its tokens alone: the same on any rank, in any order, in a repeated run."""
    return torch.tensor([zlib.crc32(row.cpu().numpy().tobytes()) for row in data["input_ids"].unbind()])


def on_device(batch: Batch, device: Any) -> Batch:
    """The batch where the engine's forward passes and collectives run; verl's data wait on the CPU."""
    values = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return dataclasses.replace(batch, **{n: v.to(device) for n, v in values.items() if v is not None})


def validate(batch: Batch, objective: Objective, where: str) -> None:
    """Raise DataError for what cannot be trained on, before the first forward pass, naming the sequence by `where`."""
    needed = {name for name in objective.needs if hasattr(batch, name)}
    try:
        checks.validate(batch, stand_in(batch.response_mask)[1], frozenset(needed))
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def top_k_metrics(batch: Batch, stats: TokenStats, plan: Plan) -> dict[str, Tensor]:
    """Mean and maximum over the response tokens of each bound that the top-K proves."""
    metrics = {}
    for name in sorted(TOP_K_FIELDS):
        if (bound := getattr(stats, name)) is not None:
            kept = torch.where(batch.response_mask, bound, 0)
            metrics |= {f"{name}_mean": kept.sum() / plan.counts.tokens.clamp(min=1), f"{name}_max": kept.max()}
    return metrics


def verl_metrics(
    metrics: Mapping[str, Tensor], fractions: Mapping[str, Tensor], loss: Tensor, ranks: int
) -> dict[str, Metric]:
    """Shares as verl adds them up (it averages over ranks, then sums over micro-batches), and maxima as maxima.

    `fractions` are shares under verl's own names.
    """
    named = {name: value for name, value in metrics.items() if name not in _FROM_THE_WHOLE_STEP}
    # One copy from the device for all of them.
    tensors = (loss, *fractions.values(), *named.values())
    values = torch.stack([value.detach().float() for value in tensors]).tolist()
    numbers = dict(zip(named, values[1 + len(fractions) :], strict=True))
    shares = dict(zip(("actor/pg_loss", *(f"actor/{name}" for name in fractions)), values, strict=False))
    shares |= {f"actor/{theirs}": numbers[ours] for theirs, ours in VERL_NAMES.items()}
    shares |= {f"actor/holdfast/{name}": value for name, value in numbers.items() if not name.endswith("_max")}
    maxima = {f"actor/holdfast/{name}": value for name, value in numbers.items() if name.endswith("_max")}
    scaled = {name: ranks * value for name, value in shares.items()}
    return Metric.from_dict(scaled, AggregationType.SUM) | Metric.from_dict(maxima, AggregationType.MAX)


def _padded(values: Tensor) -> Tensor:
    return values.to_padded_tensor(0) if values.is_nested else values


def _optional(data: Any, name: str) -> Float[Tensor, "B T"] | None:
    return _padded(data[name]) if name in data.keys() else None  # noqa: SIM118 (a TensorDict)

"""From rollouts to new weights: the trainer's own look at the rollouts, then one or more optimiser steps.

Splitting a step into micro-batches changes no gradient: whole-batch statistics are prepared once per optimiser
step, and the micro-batches' losses are shares that add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from holdfast.errors import DataError
from holdfast.objectives.metrics import merge_metrics
from holdfast.objectives.objective import Objective, Plan
from holdfast.objectives.whole_step import stand_in, whole_step_parts
from holdfast.train.keep.stopwatch import Stopwatch
from holdfast.train.policy.forward import Looks, Policy, Sequences, gather_stats, micro_batches, stats_of
from holdfast.train.sampling.data import Rollouts
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.seeds import derive_seed
from holdfast.types import Batch, LossOutput, TokenStats


@dataclass(frozen=True)
class Updated:
    """What one step's updates saw and did; tensors are [B, T] over the step's rollouts.

    `stats` is the trainer's view before any update of this step; `trust_mask` and `reasons` are those of the first
    pass. `metrics` are means over the optimiser steps (maxima where the name ends in _max).
    """

    batch: Batch
    stats: TokenStats
    trust_mask: Bool[Tensor, "B T"]
    reasons: Mapping[str, Bool[Tensor, "B T"]]
    metrics: Mapping[str, float]

    @property
    def advantages(self) -> Float[Tensor, "B T"]:
        """The advantage of every response token."""
        return self.batch.advantages


class Updater:
    """The objective, the policy and the optimiser, and how a step's rollouts are cut into updates."""

    def __init__(
        self, config: RunConfig, objective: Objective, policy: Policy, reference: Looks | None, optimizer: Any
    ) -> None:
        self.config = config
        self.objective = objective
        self.policy = policy
        self.reference = reference
        self.optimizer = optimizer
        self.max_tokens = config.batch.micro_batch_tokens
        # Zeros, never None: a step without any gradient must not depend on whether the run was resumed before it.
        self.parameters = [p for p in policy.model.parameters() if p.requires_grad]
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.moved = False
        """Whether the step under way has changed weights."""

    def step(self, rollouts: Rollouts, step: int, clock: Stopwatch) -> Updated:
        """All optimiser steps of one rollout batch."""
        sequences = rollouts.sequences
        everything = torch.arange(len(rollouts.prompts))
        with clock.measure("old_logprobs"):
            batch = self._batch(rollouts)
            fused = self.config.batch.updates == 1 and self._fused(self._parts(batch, sequences, everything)[0])
            known = None if fused else stats_of(self.policy, sequences, everything, self.max_tokens)
            batch = replace(batch, old_logprobs=None if known is None else known.logprobs)
        outputs = []
        with clock.measure("update"):
            for number, (epoch, rows) in enumerate(self._minibatches(len(rollouts.prompts), step)):
                still = known.select(rows) if known is not None and number == 0 else None
                outputs.append((epoch, rows, self._optimizer_step(batch, sequences, rows, still, step)))
        trust_mask, reasons = _verdicts([(rows, done) for epoch, rows, done in outputs if epoch == 0], batch)
        return Updated(
            stats=known if known is not None else outputs[0][2].stats,
            batch=batch,
            trust_mask=trust_mask,
            reasons=reasons,
            metrics=_mean_metrics([done.metrics for _, _, done in outputs]),
        )

    def _fused(self, parts: Sequence[Tensor]) -> bool:
        """Whether the update's own forward pass can serve as the look before it, so that nothing is computed twice.

        It can where nothing is prepared from the policy over the whole batch, or the whole batch is one pass.
        """
        return len(parts) == 1 or not whole_step_parts(self.objective)

    def _batch(self, rollouts: Rollouts) -> Batch:
        mask = rollouts.sequences.response_mask
        everything = torch.arange(len(rollouts.prompts))
        reference = None
        if self.reference is not None:
            reference = stats_of(self.reference, rollouts.sequences, everything, self.max_tokens).logprobs
        return Batch(
            advantages=self.objective.estimate_advantages(rollouts.rewards, rollouts.group_ids, mask),
            response_mask=mask,
            rollout_logprobs=rollouts.rollout_logprobs,
            ref_logprobs=reference,
            turn_ids=rollouts.turn_ids,
            sequence_ids=rollouts.sequence_ids,
            group_ids=rollouts.group_ids,
        )

    def _minibatches(self, total: int, step: int) -> Iterator[tuple[int, Int[Tensor, " b"]]]:
        """Every epoch visits every sequence once, in an order that depends on seed, step and epoch only."""
        parts = self.config.batch.minibatches
        for epoch in range(self.config.batch.epochs):
            order = torch.arange(total)
            if parts > 1:
                generator = torch.Generator().manual_seed(derive_seed(self.config.seed, "shuffle", step, epoch))
                order = torch.randperm(total, generator=generator)
            for rows in order.chunk(parts):
                yield epoch, rows

    def _optimizer_step(
        self, batch: Batch, sequences: Sequences, rows: Int[Tensor, " b"], known: TokenStats | None, step: int
    ) -> _Done:
        """One update from these rows; `known` is the current policy on them, where that has been computed already."""
        parts, silent = self._parts(batch, sequences, rows)
        if known is None and not self._fused(parts):
            known = stats_of(self.policy, sequences, rows, self.max_tokens)
        place = torch.zeros(len(batch.response_mask), dtype=torch.long)
        place[rows] = torch.arange(len(rows))
        plan = None if known is None and len(parts) == 1 else self._plan(batch.select(rows), known, step)
        pieces, outputs = [], []
        for number, part in enumerate(parts):
            with torch.set_grad_enabled(number < len(parts) - silent):
                stats = self.policy.stats(sequences.select(part))
                if plan is None:  # the only part is the whole batch, in the order of its lengths
                    plan, place[part] = self._plan(batch.select(part), stats.detach(), step), torch.arange(len(part))
                output = self.objective(batch.select(part), stats, plan=plan.select(place[part]))
            if output.loss.requires_grad:
                output.loss.backward()
            pieces.append(stats.detach())
            outputs.append((part, output))
        assert plan is not None
        loss = torch.stack([output.loss.detach() for _, output in outputs]).sum()
        metrics = merge_metrics([output.metrics for _, output in outputs])
        metrics |= {"loss": loss, "grad_norm": self._apply(step)}
        self.objective = self.objective.after_step(metrics)
        seen = known if known is not None else gather_stats(pieces, parts, rows)
        return _Done(seen, outputs, metrics)

    def _parts(
        self, batch: Batch, sequences: Sequences, rows: Int[Tensor, " b"]
    ) -> tuple[list[Int[Tensor, " _"]], int]:
        """Micro-batches, and how many of them, at the end, have no gradient.

        Where every advantage is zero (a group that is all right or all wrong), so is the gradient of the policy term;
        without penalties those rows need no backward pass.
        """
        silent = torch.zeros(len(rows), dtype=torch.bool)
        if not self.objective.penalties:
            silent = ~batch.advantages[rows].any(dim=1)
        loud = list(micro_batches(sequences, rows[~silent], self.max_tokens))
        quiet = list(micro_batches(sequences, rows[silent], self.max_tokens))
        return loud + quiet, len(quiet)

    def _plan(self, batch: Batch, stats: TokenStats | None, step: int) -> Plan:
        """Whole-batch statistics; without `stats` the plan is known to ignore the policy and anything may stand in."""
        stats = stand_in(batch.response_mask)[1] if stats is None else stats
        return self.objective.prepare(batch, stats, step=step - 1)

    def _apply(self, step: int) -> Tensor:
        """Clip the gradient, step, clear; returns the norm before clipping."""
        norm, most = get_total_norm([p.grad for p in self.parameters]), self.config.optimizer.max_grad_norm
        if not math.isfinite(norm):
            raise DataError(
                f"step {step}: the gradient norm is {float(norm)}; lower optimizer.learning_rate "
                f"({self.config.optimizer.learning_rate:g}) or choose an objective with a trust region"
            )
        if norm > most:
            clip_grads_with_norm_(self.parameters, most, norm)
        self.moved = True
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        return norm


@dataclass(frozen=True)
class _Done:
    """One optimiser step: statistics in row order, what the objective said per micro-batch, merged metrics."""

    stats: TokenStats
    outputs: Sequence[tuple[Int[Tensor, " _"], LossOutput]]
    metrics: Mapping[str, Tensor]


def _verdicts(
    steps: Sequence[tuple[Int[Tensor, " b"], _Done]], batch: Batch
) -> tuple[Bool[Tensor, "B T"], dict[str, Bool[Tensor, "B T"]]]:
    """The trust mask of every sequence and the tokens that each named part rejected."""
    trusted = torch.zeros_like(batch.response_mask)
    reasons: dict[str, Tensor] = {}
    for rows, output in (pair for _, done in steps for pair in done.outputs):
        trusted[rows] = output.trust_mask
        for name, rejected in output.reasons.items():
            reasons.setdefault(name, torch.zeros_like(trusted))[rows] = rejected
    return trusted, reasons


def _mean_metrics(steps: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    merged = {}
    for name in steps[0]:
        values = [float(metrics[name]) for metrics in steps]
        merged[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
    return merged

"""ROLL's actor worker with an objective of ours as its loss:

    actor_train:
      worker_cls: holdfast.integrations.roll.ActorWorker
      system_envs:
        HOLDFAST_OBJECTIVE: trm+dapo
        HOLDFAST_RECORDS: /data/run/rollouts         # optional: sequences for the audit
        HOLDFAST_RECORDS_EVERY: 10                   # of every 10th step

ROLL hands over a micro-batch with the counts of the whole step, and adds the losses up (`apply_loss_scale`, on by
default), so means are exact under any split. The old policy is the trainer's own (recomputed, or the current one in a
step's first pass), the engine's numbers are `infer_logprobs`, where the run keeps them. ROLL's own KL and entropy
terms, sample weights and corrections of the engine do not apply: the objective is all of the loss. Read at ROLL of
August 2026; tested on the worker's contract, and not inside it.
"""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from holdfast.errors import ConfigError, DataError
from holdfast.integrations.doors import Door, batch_of, plain
from holdfast.integrations.records import Records, Sequences
from holdfast.objectives.objective import Objective
from holdfast.types import Batch, Counts, LossOutput, TokenStats

DOOR = Door("ROLL", frozenset({"old_logprobs", "rollout_logprobs", "ref_logprobs"}), "part")
VARIABLE = "HOLDFAST_OBJECTIVE"
DEFAULT = "trm+grpo"
FOLDER, EVERY = "HOLDFAST_RECORDS", "HOLDFAST_RECORDS_EVERY"
MASKS = ("final_response_mask", "response_mask")
"""What is trained on, the first that the step has."""


@functools.cache
def chosen(name: str) -> Objective:
    """The objective of a name; raises ConfigError for one that ROLL cannot feed."""
    return DOOR.objective(name, {})


def policy_loss(worker: Any, data: Any, output_tensor: Tensor) -> tuple[Tensor, dict[str, float]]:
    """ROLL's `loss_func`: this micro-batch's part of the step's loss, and its metrics, which ROLL adds up.

    Raises:
        DataError: engine's log-probabilities that the objective needs and the step does not have.
    """
    objective = chosen(os.environ.get(VARIABLE, DEFAULT))
    tensors, facts = data.batch, data.meta_info
    # ROLL has cut the first token off the final mask already, and not off the response's.
    key = next(name for name in MASKS if tensors.get(name) is not None)
    mask = (tensors[key] if key == MASKS[0] else tensors[key][:, 1:]).bool()
    counted = key if key in facts["batch_num_tokens"] else MASKS[1]
    logprobs = worker.strategy.op_compute_log_probs(
        logits=output_tensor, input_ids=tensors["input_ids"], attention_mask=tensors["response_mask"]
    )
    engine = tensors.get("infer_logprobs")
    if engine is None or engine.numel() == 0:
        engine = None
        if "rollout_logprobs" in objective.needs:
            raise DataError(
                f"ROLL: {objective.name!r} compares with the engine, and this step has no infer_logprobs: set "
                "actor_infer.generating_args.logprobs: 0 (null keeps none), or name an objective that does without"
            )
    given = {
        "old_logprobs": worker.get_old_log_probs_with_cache(data, logprobs),
        "rollout_logprobs": engine,
        "ref_logprobs": tensors.get("ref_log_probs"),
    }
    batch = batch_of(mask, tensors["advantages"], **given)
    stats = TokenStats(logprobs=logprobs)
    counts = Counts(
        sequences=_count(facts["global_valid_samples"][counted], mask),
        tokens=_count(facts["batch_num_tokens"][counted], mask),
    )
    out = objective(batch, stats, plan=objective.prepare(batch, stats.detach(), counts=counts, validate=False))
    if os.environ.get(FOLDER):
        write(data, batch, stats, out)
    metrics = {f"{name}@sum": value for name, value in plain(out.metrics, "actor/holdfast/").items()}
    return out.loss, {"actor/total_loss@sum": float(out.loss.detach()), **metrics}


def write(data: Any, batch: Batch, stats: TokenStats, out: LossOutput) -> None:
    """The micro-batch into the records of this process: once a step, of its first pass.

    ROLL numbers sequences (`sample_uuid`); the second of several passes (`ppo_epochs`) is told by them.
    """
    files = _records(os.environ[FOLDER], os.environ.get(EVERY) or "1")
    step = int(data.meta_info.get("global_step", files.files.step))
    names = (getattr(data, "non_tensor_batch", None) or {}).get("sample_uuid")
    fresh = files.fresh(step, names, len(batch.response_mask))
    if not fresh:
        return
    rows = torch.tensor(fresh)
    trainer = stats.logprobs if batch.old_logprobs is None else batch.old_logprobs
    tokens = data.batch["input_ids"]
    real = data.batch.get("attention_mask")
    real = torch.ones_like(tokens) if real is None else real
    sequences = Sequences(tokens[rows], real[rows].bool(), trainer[rows])
    files.files.add(step, sequences, batch.select(rows), replace(out, trust_mask=out.trust_mask[rows]))


class _Once:
    """Records, and the sequences of the step that are in them."""

    def __init__(self, folder: str, every: str) -> None:
        if not every.isdecimal():
            raise ConfigError(f"{EVERY}={every}: give a whole number from 1 on, the steps between two that are written")
        self.files, self.step, self.seen = Records(folder, "roll", int(every)), -1, set[str]()

    def fresh(self, step: int, names: Any, rows: int) -> list[int]:
        """The rows that were not written in this step."""
        if step != self.step:
            self.step, self.seen = step, set()
        if names is None:
            return list(range(rows))
        found = [row for row, name in enumerate(names) if str(name) not in self.seen]
        self.seen |= {str(name) for name in names}
        return found


@functools.cache
def _records(folder: str, every: str) -> _Once:
    return _Once(folder, every)


def _count(number: Any, beside: Tensor) -> Tensor:
    return torch.as_tensor(number, device=beside.device)


def __getattr__(name: str) -> Any:
    """`ActorWorker`, made of ROLL's own where it is asked for: importing this module needs no ROLL."""
    if name != "ActorWorker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from roll.pipeline.rlvr.actor_worker import ActorWorker as Theirs  # pyright: ignore[reportMissingImports]

    return type("ActorWorker", (Theirs,), {"loss_func": policy_loss, "__module__": __name__})

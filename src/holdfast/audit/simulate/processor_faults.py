"""Faults of what one side does to logits, prompts or numbers that the other does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from holdfast.audit.read.columns import Column
from holdfast.audit.simulate.fault import Fault
from holdfast.audit.simulate.replay import Replay, floats
from holdfast.audit.simulate.training_faults import QUIET
from holdfast.audit.simulate.world import CONTEXTS, VOCABULARY, World, first_context, log_softmax, next_context
from holdfast.types import Rollout


def penalised_engine(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """The engine divides positive logits of ids in the context by `strength`, and multiplies negative ones by it."""
    whole = Replay.of(rollouts)
    ids, rows, engine = _sample_penalised(whole, strength, rng)
    step = np.repeat(whole.steps, whole.lengths)
    replay = replace(whole, ids=ids, rows=rows, tokens=(step - 1) * CONTEXTS + rows % CONTEXTS)
    trainer = log_softmax(replay.trainer_logits())[replay.tokens, ids]
    return [replace(r, kl_exact=None) for r in replay.log(rollouts, rollout_logprobs=engine, trainer_logprobs=trainer)]


def _sample_penalised(replay: Replay, penalty: float, rng: np.random.Generator) -> tuple[Column, Column, Column]:
    """Flat ids, rows of the engine's tables, and log-probabilities under the penalty, position by position."""
    world: World = replay.world
    logits = world.engine_logits.reshape(-1, VOCABULARY)
    count, longest = len(replay.lengths), int(replay.lengths.max())
    ids, rows = (np.zeros((longest, count), np.int64) for _ in range(2))
    engine = np.zeros((longest, count))
    everyone = np.arange(count)
    seen = np.zeros((count, VOCABULARY), bool)
    seen[everyone[:, None], replay.prompts] = True
    context = first_context(replay.prompts)
    for position in range(longest):
        row = world.rows(replay.versions, world.copies(everyone, position), context)
        plain = logits[row]
        changed = np.where(seen, np.where(plain > 0, plain / penalty, plain * penalty), plain) / world.temperature
        logprobs = log_softmax(changed)
        token = np.minimum((np.cumsum(np.exp(logprobs), 1) < rng.random((count, 1))).sum(1), VOCABULARY - 1)
        ids[position], rows[position], engine[position] = token, row, logprobs[everyone, token]
        seen[everyone, token] = True
        context = next_context(context, token, position)
    inside = np.arange(longest) < replay.lengths[:, None]
    return ids.T[inside], rows.T[inside], engine.T[inside]


def in_bfloat16(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """The trainer's log-probabilities of a share `strength` of the sequences are stored in bfloat16."""

    def change(r: Rollout) -> Rollout:
        bits = np.asarray(r.trainer_logprobs, np.float32).view(np.uint32) + np.uint32(0x8000)
        return replace(r, trainer_logprobs=floats((bits & np.uint32(0xFFFF0000)).view(np.float32)))

    return [change(r) if rng.random() < strength else r for r in rollouts]


def rounded(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """The engine's log-probabilities have `strength` decimals."""
    return [
        replace(r, rollout_logprobs=floats(np.round(np.asarray(r.rollout_logprobs), int(strength)))) for r in rollouts
    ]


def doubled_start(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """A share `strength` of the prompts begin with one special token twice."""
    chosen = {p for p in sorted({r.prompt_ids for r in rollouts}) if rng.random() < strength}
    special = VOCABULARY
    return [
        replace(r, prompt_ids=(special, special, *r.prompt_ids) if r.prompt_ids in chosen else (special, *r.prompt_ids))
        for r in rollouts
    ]


PROCESSOR_FAULTS = (
    Fault(
        "penalised_engine",
        "repetition_penalty",
        "the engine samples with a repetition penalty of {strength:g}, the trainer knows of none",
        (1.01, 1.02, 1.05, 1.1, 1.3),
        penalised_engine,
        run=QUIET,
    ),
    Fault(
        "in_bfloat16",
        "coarse_logprobs",
        "the trainer's log-probabilities of {strength:.0%} of the sequences are in bfloat16",
        (0.5, 1.0),
        in_bfloat16,
    ),
    Fault(
        "rounded",
        "coarse_logprobs",
        "the engine's log-probabilities have {strength:g} decimals",
        (4.0, 3.0, 2.0, 1.0),
        rounded,
    ),
    Fault(
        "doubled_start",
        "doubled_token",
        "{strength:.0%} of the prompts begin with their special token twice",
        (0.5, 1.0),
        doubled_start,
    ),
)

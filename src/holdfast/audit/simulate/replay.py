"""A simulated log traced back to the tables it was drawn from, so that a fault can be computed and not imitated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from holdfast.audit.read.columns import Column
from holdfast.audit.simulate.run import sample
from holdfast.audit.simulate.world import (
    CONTEXTS,
    VOCABULARY,
    World,
    first_context,
    next_context,
    shared,
)
from holdfast.errors import DataError
from holdfast.types import Rollout


@dataclass(frozen=True)
class Replay:
    """For each response token, flat: its id, its row of the engine's tables and, as `tokens`, of the trainer's."""

    world: World
    lengths: Column
    ids: Column
    rows: Column
    tokens: Column
    versions: Column
    steps: Column
    prompts: Column

    @staticmethod
    def of(rollouts: Sequence[Rollout]) -> Replay:
        """Trace rollouts of `clean_run`. Raises DataError for others."""
        found = rollouts[0].extra.get("simulated") if rollouts else None
        if found is None:
            raise DataError("this fault needs rollouts made by simulate.clean_run: they say which policies drew them")
        world = shared(World(**found))
        lengths = np.array([len(r.response_ids) for r in rollouts])
        ids = np.concatenate([np.array(r.response_ids) for r in rollouts])
        versions = np.array([(r.weight_versions or (0,))[0] for r in rollouts])
        steps = np.array([r.step or 1 for r in rollouts])
        prompts = np.array([r.prompt_ids for r in rollouts])
        numbers = np.array([r.sequence_id or 0 for r in rollouts])
        contexts, copies = _trace(world, first_context(prompts), lengths, ids, numbers)
        version, step = np.repeat(versions, lengths), np.repeat(steps, lengths)
        return Replay(
            world=world,
            lengths=lengths,
            ids=ids,
            rows=world.rows(version, copies, contexts),
            tokens=(step - 1) * CONTEXTS + contexts,
            versions=versions,
            steps=steps,
            prompts=prompts,
        )

    def trainer_logits(self) -> Column:
        """[versions · contexts, vocabulary], indexed by `tokens`; at the world's temperature, of any support."""
        return self.world.trainer_logits.reshape(-1, VOCABULARY) / self.world.temperature

    def sampled_again(self, world: World, rng: np.random.Generator) -> Replay:
        """The same prompts, lengths and weights, with tokens drawn from another world's engine."""
        world = shared(world)
        numbers = np.arange(len(self.lengths))
        ids, rows = sample(world, first_context(self.prompts), self.lengths, self.versions, numbers, rng)
        step = np.repeat(self.steps, self.lengths)
        return replace(self, world=world, ids=ids, rows=rows, tokens=(step - 1) * CONTEXTS + rows % CONTEXTS)

    def kl(self, trainer: Column) -> Column:
        """Flat exact KL(engine‖trainer) in nats from the trainer's log-probabilities [tokens, vocabulary]."""
        engine = self.world.engine_logprobs[self.rows]
        with np.errstate(invalid="ignore"):
            return np.maximum(np.nansum(np.exp(engine) * (engine - trainer), -1), 0)

    def log(self, rollouts: Sequence[Rollout], **fields: Any) -> list[Rollout]:
        """The rollouts with these ids and fields; flat arrays are cut up, and apply to the policy's own tokens."""
        ends = np.cumsum(self.lengths)
        out = []
        for rollout, start, end in zip(rollouts, ends - self.lengths, ends, strict=True):
            values: dict[str, Any] = {"response_ids": tuple(self.ids[start:end].tolist())}
            for name, field in fields.items():
                if not isinstance(field, np.ndarray):
                    values[name] = field
                    continue
                own = np.array(rollout.response_mask)
                given = field[start:end] if name == "kl_exact" else np.minimum(field[start:end], 0)
                values[name] = floats(np.where(own, given, getattr(rollout, name)))
            out.append(replace(rollout, **values))
        return out


def floats(values: Column) -> tuple[float, ...]:
    """As a log holds them: float32."""
    return tuple(values.astype(np.float32).tolist())


def _trace(world: World, context: Column, lengths: Column, ids: Column, numbers: Column) -> tuple[Column, Column]:
    """Flat contexts and engine copies of the tokens, by walking all sequences at once."""
    longest = int(lengths.max())
    inside = np.arange(longest) < lengths[:, None]
    padded = np.zeros(inside.shape, np.int64)
    padded[inside] = ids
    contexts, copies = np.zeros_like(padded), np.zeros_like(padded)
    for position in range(longest):
        contexts[:, position] = context
        copies[:, position] = world.copies(numbers, position)
        context = next_context(context, padded[:, position], position)
    return contexts[inside], copies[inside]

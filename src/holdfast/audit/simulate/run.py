"""Healthy runs, sampled from a known pair of policies: what a log looks like when nothing is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from holdfast.audit.read.columns import Chunk, Column, as_rollouts
from holdfast.audit.simulate.world import VOCABULARY, World, first_context, next_context, shared
from holdfast.types import Rollout

PROMPT_LENGTH = 12
TOOL_TOKENS = 8
"""Tokens of tool output before each turn but the first: outside the response mask, and of log-probability 0."""
ENVIRONMENTS = ("arithmetic", "code", "search")
UNEVEN = np.array([0.5, 1.0, 2.0])
"""Times the mean length, by environment, of an `uneven` run."""
ESTIMATORS = ("grpo", "dr_grpo", "rloo", "whitened", "batch", "kl", "filtered", "partial", "thinned")
"""How healthy runs make advantages: by a group's mean and standard deviation, its mean, leaving one out, its mean and
the batch's standard deviation, the batch's mean and standard deviation, with a KL taken off the reward; without groups
of equal rewards; in groups that lost members before, or after, advantages were made."""
LOST = 0.15
"""Share of the members that partial and thinned groups lose."""


@dataclass(frozen=True)
class Plan:
    """What a run is like: its size, its policies, and how many updates old the rollouts are.

    With `age` a, rollout i of a group is min(i mod (a + 1), step - 1) updates old. Prompt tokens are numbers below the
    vocabulary; lengths are log-normal about `mean_length`. Rewards stay about one half, or go to `solved`, the share of
    the last step's responses that are right. An `anonymous` run logs neither prompts nor groups. In an `uneven` one
    environments have lengths of their own.
    """

    world: World
    steps: int = 8
    prompts: int = 8
    group_size: int = 8
    mean_length: int = 200
    age: int = 0
    turns: int = 1
    texts: bool = False
    solved: float | None = None
    anonymous: bool = False
    uneven: bool = False
    estimator: str = "grpo"


def clean_run(seed: int, **options: Any) -> list[Rollout]:
    """A healthy run: every field filled, steps × prompts × group_size rollouts in reading order (see `plan_of`)."""
    return [rollout for chunk in clean_chunks(plan_of(seed, **options)) for rollout in as_rollouts(chunk)]


def plan_of(seed: int, **options: Any) -> Plan:
    """A plan from fields of `Plan` and of its `World`, mixed.

    Steps count from 1; the trainer of step s has weight version s - 1.
    """
    own = {f.name: options.pop(f.name) for f in fields(Plan) if f.name in options}
    return Plan(World(seed, versions=own.get("steps", Plan.steps), **options), **own)


def clean_chunks(plan: Plan) -> Iterator[Chunk]:
    """The same run a step at a time, as columns."""
    world = shared(plan.world)
    for step in range(1, plan.steps + 1):
        yield _step(plan, world, step, np.random.default_rng([world.seed, 3, step]))


def _step(plan: Plan, world: World, step: int, rng: np.random.Generator) -> Chunk:
    count = plan.prompts * plan.group_size
    group = np.repeat(np.arange(plan.prompts), plan.group_size)
    prompt = rng.integers(0, VOCABULARY, (plan.prompts, PROMPT_LENGTH))[group]
    spread = np.exp(rng.normal(-0.08, 0.4, count))
    if plan.uneven:
        spread = spread * UNEVEN[group % len(ENVIRONMENTS)]
    lengths = np.maximum(4 * plan.turns, np.round(plan.mean_length * spread).astype(np.int64))
    age = np.minimum(np.arange(count) % (plan.age + 1), step - 1)
    numbers = (step - 1) * count + np.arange(count)
    ids, rows = sample(world, first_context(prompt), lengths, step - 1 - age, numbers, rng)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = _token_columns(world, ids, rows, np.repeat(age, lengths))
    tokens["weight_versions"] = np.repeat(step - 1 - age, lengths).astype(np.int32)
    rewards, advantages, kept = _rewards(plan, step, rng)
    tokens["advantages"] = np.repeat(advantages, lengths).astype(np.float32)
    _add_turns(plan, tokens, offsets, rng)
    columns = {
        "reward": rewards.astype(np.float32),
        "step": np.full(count, step),
        "sequence_id": numbers,
        "group_id": group + (step - 1) * plan.prompts,
        "temperature": np.full(count, world.temperature, np.float32),
        "top_p": np.full(count, world.top_p, np.float32),
    }
    if plan.anonymous:
        del columns["group_id"]
        prompt = prompt[:, :0]
    environment = np.array(ENVIRONMENTS, dtype=object)[group % len(ENVIRONMENTS)]
    if not kept.all():
        inside = np.repeat(kept, lengths)
        offsets = np.concatenate([[0], np.cumsum(lengths[kept])])
        tokens = {name: values[inside] for name, values in tokens.items()}
        columns = {name: values[kept] for name, values in columns.items()}
        environment, prompt = environment[kept], prompt[kept]
    return _chunk(plan, offsets, tokens, columns, environment, prompt)


def sample(
    world: World, context: Column, lengths: Column, version: Column, numbers: Column, rng: np.random.Generator
) -> tuple[Column, Column]:
    """Flat token ids of responses of these lengths, and the row of the engine's tables each was drawn from."""
    longest = int(lengths.max())
    ids = np.zeros((longest, len(lengths)), np.int32)
    rows = np.zeros((longest, len(lengths)), np.int64)
    for position in range(longest):
        row = world.rows(version, world.copies(numbers, position), context)
        found = np.searchsorted(world.cumulative, row + rng.random(len(row)), side="right")
        token = np.minimum(found - row * VOCABULARY, VOCABULARY - 1)
        ids[position], rows[position] = token, row
        context = next_context(context, token, position)
    inside = np.arange(longest) < lengths[:, None]
    return ids.T[inside], rows.T[inside]


def _token_columns(world: World, ids: Column, rows: Column, age: Column) -> dict[str, Column]:
    engine = world.engine_logprobs
    out = {name: np.empty(len(ids), np.float32) for name in ("trainer_logprobs", "entropy", "kl_exact")}
    for a in np.unique(age):
        trainer = world.trainer_logprobs(int(a))
        here = age == a
        with np.errstate(invalid="ignore"):
            entropy = -np.nansum(np.exp(trainer) * trainer, -1)
            kl = np.nansum(np.exp(engine) * (engine - trainer), -1)
        out["trainer_logprobs"][here] = trainer[rows[here], ids[here]]
        out["entropy"][here] = entropy[rows[here]]
        out["kl_exact"][here] = np.maximum(kl[rows[here]], 0)
    return {
        "response_ids": ids,
        "rollout_logprobs": np.minimum(engine[rows, ids], 0).astype(np.float32),
        **out,
        "response_mask": np.ones(len(ids), bool),
        "trust_mask": np.ones(len(ids), bool),
        "turn_ids": np.zeros(len(ids), np.int32),
    }


def _rewards(plan: Plan, step: int, rng: np.random.Generator) -> tuple[Column, Column, Column]:
    """Rewards 0 or 1 of prompts of different difficulty, advantages, and which sequences the log keeps."""
    right = rng.beta(1.5, 1.5, (plan.prompts, 1))
    if plan.solved is not None:
        right = right + (plan.solved - right) * (step - 1) / max(1, plan.steps - 1)
    rewards = (rng.random((plan.prompts, plan.group_size)) < right).astype(np.float64)
    kept = np.ones(rewards.shape, bool)
    paid = rewards
    if plan.estimator in ("partial", "thinned"):
        kept = rng.random(rewards.shape) >= LOST
    if plan.estimator == "filtered":
        kept &= rewards.std(1, keepdims=True) > 0
    if plan.estimator == "kl":
        paid = rewards - 0.1 * rng.gamma(2.0, 0.5, rewards.shape)
    counted = kept if plan.estimator == "partial" else np.ones_like(kept)
    if not kept.any():
        kept = np.ones_like(kept)
    return rewards.ravel(), _advantages(plan.estimator, paid, counted).ravel(), kept.ravel()


def _advantages(estimator: str, rewards: Column, counted: Column) -> Column:
    """[prompts, group] advantages by one of ESTIMATORS from rewards and the members that count."""
    number = np.maximum(counted.sum(1, keepdims=True), 1)
    centred = rewards - (rewards * counted).sum(1, keepdims=True) / number
    if estimator == "dr_grpo":
        return centred
    if estimator == "rloo":
        return centred * number / np.maximum(number - 1, 1)
    if estimator == "whitened":
        return centred / (centred.std() + 1e-6)
    if estimator == "batch":
        return (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    return centred / (np.sqrt((centred**2 * counted).sum(1, keepdims=True) / number) + 1e-6)


def _add_turns(plan: Plan, tokens: dict[str, Column], offsets: Column, rng: np.random.Generator) -> None:
    """Cut each response into turns of equal length; all but the first start with tool output."""
    if plan.turns == 1:
        return
    lengths = np.diff(offsets)
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    turn_length = np.maximum(np.repeat(lengths, lengths) // plan.turns, 1)
    turn = np.minimum(position // turn_length, plan.turns - 1)
    tool = (turn > 0) & (position - turn * turn_length < np.minimum(TOOL_TOKENS, turn_length // 2))
    tokens["turn_ids"] = turn.astype(np.int32)
    tokens["response_mask"] = ~tool
    tokens["trust_mask"] = ~tool
    tokens["rollout_logprobs"][tool] = 0
    for name in ("trainer_logprobs", "entropy", "kl_exact", "advantages"):
        tokens[name][tool] = 0


def _chunk(
    plan: Plan,
    offsets: Column,
    tokens: dict[str, Column],
    numbers: dict[str, Column],
    environment: Column,
    prompt: Column,
) -> Chunk:
    count = len(offsets) - 1
    finish = np.array(["stop"] * count, dtype=object)
    present = {name: np.ones(count, bool) for name in (*tokens, *numbers, "environment", "finish_reason")}
    recorded = {"simulated": asdict(plan.world)}

    def rollout(i: int) -> Rollout:
        inside = slice(offsets[i], offsets[i + 1])
        ids = tuple(tokens["response_ids"][inside].tolist())
        return Rollout(
            prompt_ids=tuple(prompt[i].tolist()),
            environment=environment[i],
            finish_reason=finish[i],
            token_texts=tuple(map(text_of, ids)) if plan.texts else None,
            extra=recorded,
            **{name: tuple(values[inside].tolist()) for name, values in tokens.items()},
            **{name: values[i].item() for name, values in numbers.items()},
        )

    hashes = (prompt * (np.arange(prompt.shape[1]) * 2 + 1_000_003) ** 3).sum(1)
    words = {"environment": environment, "finish_reason": finish}
    return Chunk(offsets, tokens, numbers, words, present, hashes, rollout, lambda i: lambda: rollout(i))


def text_of(token: int) -> str:
    """A readable name for a simulated token."""
    letters = "aeioukstnrlmdpbg"
    return " " + letters[token % 16] + letters[token // 16 * 5 % 16] + (letters[token * 7 % 16] if token % 3 else "")

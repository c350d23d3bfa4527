"""Faults of who is paid for what: advantages that rewards did not make, and masks beside what was sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from holdfast.audit.read.columns import Column
from holdfast.audit.simulate.data_faults import Apply, floats_of, replace_ids, some_sequences, some_tokens
from holdfast.audit.simulate.fault import Fault
from holdfast.audit.simulate.replay import Replay
from holdfast.audit.simulate.world import VOCABULARY, log_softmax
from holdfast.types import Rollout

TURNS = {"turns": 3}


def paid(rollouts: Sequence[Rollout], advantages: Sequence[float] | Column) -> list[Rollout]:
    """The rollouts with these advantages, one for all tokens of each."""
    return [
        replace(r, advantages=(float(np.float32(a)),) * len(r.response_ids))
        for r, a in zip(rollouts, advantages, strict=True)
    ]


def advantage_of(rollout: Rollout) -> float:
    """The advantage of a rollout's first own token."""
    return next(a for a, own in zip(rollout.advantages or (), rollout.response_mask or (), strict=True) if own)


def some_groups_reversed(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """In a share `strength` of the groups advantages have the wrong sign."""
    chosen = {g for g in sorted({r.group_id or 0 for r in rollouts}) if rng.random() < strength}
    return paid(rollouts, [advantage_of(r) * (-1 if (r.group_id or 0) in chosen else 1) for r in rollouts])


def other_rows(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """In a share `strength` of the sequences the advantages are those of other rows."""
    values = np.array([advantage_of(r) for r in rollouts])
    moved = np.flatnonzero(rng.random(len(values)) < strength)
    values[moved] = values[rng.permutation(moved)]
    return paid(rollouts, values)


def first_is_the_mean(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """In a share `strength` of the groups the baseline is the first member's reward."""
    first: dict[int | None, float | None] = {}
    out = []
    for r in rollouts:
        if r.group_id not in first:
            first[r.group_id] = (r.reward or 0.0) if rng.random() < strength else None
        base = first[r.group_id]
        out.append(advantage_of(r) if base is None else (r.reward or 0.0) - base)
    return paid(rollouts, out)


def by_position(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """A share `strength` of the rollouts failed and was dropped; groups are then cut every eight rows of a step."""
    left = [r for r in rollouts if rng.random() >= strength]
    advantages: list[float] = []
    for step in sorted({r.step or 0 for r in left}):
        rewards = np.array([r.reward or 0.0 for r in left if (r.step or 0) == step])
        for start in range(0, len(rewards), 8):
            part = rewards[start : start + 8]
            advantages += ((part - part.mean()) / (part.std() + 1e-6)).tolist()
    return paid(left, advantages)


def rewards_as_advantages(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """The reward, times `strength`, is the advantage."""
    return paid(rollouts, [strength * (r.reward or 0.0) for r in rollouts])


def tool_text_in_mask(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """The first `strength` tokens of each tool's answer are in the mask: text that the policy did not choose."""
    replay = Replay.of(rollouts)
    own = np.concatenate([np.asarray(r.response_mask) for r in rollouts])
    ends = np.cumsum(replay.lengths)
    begin = np.flatnonzero(~own & np.r_[True, own[:-1]])
    tool = np.unique(np.concatenate([begin + k for k in range(int(strength))]))
    tool = tool[tool < len(own)]
    tool = tool[~own[tool]]
    ids = replay.ids.copy()
    ids[tool] = rng.integers(0, VOCABULARY, len(tool))
    engine, trainer, entropy = (floats_of(rollouts, n) for n in ("rollout_logprobs", "trainer_logprobs", "entropy"))
    table = log_softmax(replay.trainer_logits())[replay.tokens[tool]]
    engine[tool] = replay.world.engine_logprobs[replay.rows[tool], ids[tool]]
    trainer[tool], entropy[tool] = table[np.arange(len(tool)), ids[tool]], -(np.exp(table) * table).sum(-1)
    own[tool] = True
    masked = [
        replace(r, response_mask=tuple(own[e - n : e].tolist()))
        for r, n, e in zip(rollouts, replay.lengths, ends, strict=True)
    ]
    logged = replace_ids(replay, ids).log(masked, rollout_logprobs=engine, trainer_logprobs=trainer)
    return [
        replace(r, entropy=tuple(entropy[e - n : e].tolist()))
        for r, n, e in zip(logged, replay.lengths, ends, strict=True)
    ]


def changed_mask(change: Callable[[Column], Column]) -> Apply:
    """A fault that changes the mask in a share `strength` of the sequences."""
    return some_sequences(lambda r: replace(r, response_mask=tuple(change(np.array(r.response_mask)).tolist())))


def _without_last(mask: Column) -> Column:
    return np.append(mask[:-1], False)


_ADVANTAGES = (
    (
        "nan_advantages",
        "{strength:.2%} of the advantages are NaN",
        (0.0005, 0.005),
        some_tokens("advantages", np.nan),
    ),
    (
        "reversed",
        "{strength:.0%} of the groups have advantages of the wrong sign",
        (0.25, 0.5, 1.0),
        some_groups_reversed,
    ),
    (
        "other_rows",
        "{strength:.0%} of the sequences have another row's advantage",
        (0.25, 0.5, 1.0),
        other_rows,
    ),
    (
        "first_is_the_mean",
        "the baseline of {strength:.0%} of the groups is their first reward",
        (0.5, 1.0),
        first_is_the_mean,
    ),
    (
        "by_position",
        "{strength:.0%} of the rollouts are dropped, and groups cut every eight rows",
        (0.02, 0.1, 0.2),
        by_position,
    ),
    (
        "rewards_as_advantages",
        "the reward, times {strength:g}, is the advantage",
        (1.0, 3.0),
        rewards_as_advantages,
    ),
)
_MASKS = (
    (
        "tool_text",
        "the first {strength:g} tokens of a tool's answer are in the mask",
        (1.0, 2.0, 4.0, 8.0),
        tool_text_in_mask,
    ),
    (
        "inverted_mask",
        "the mask is inverted in {strength:.0%} of the sequences",
        (1.0,),
        changed_mask(np.logical_not),
    ),
    (
        "late_mask",
        "the mask is one token late in {strength:.0%} of the sequences",
        (0.5, 1.0),
        changed_mask(lambda m: np.r_[m[:1], m[:-1]]),
    ),
    (
        "early_mask",
        "the mask is one token early in {strength:.0%} of the sequences",
        (0.5, 1.0),
        changed_mask(lambda m: np.r_[m[1:], m[-1:]]),
    ),
    (
        "no_end",
        "the last token of {strength:.0%} of the responses is outside the mask",
        (0.3, 0.6, 1.0),
        changed_mask(_without_last),
    ),
)
_OF_EIGHT = {"by_position": {"group_size": 8}}
CREDIT_FAULTS = (
    *(
        Fault(name, "group_advantages", says, strengths, apply, run=_OF_EIGHT.get(name, {}))
        for name, says, strengths, apply in _ADVANTAGES
    ),
    *(Fault(name, "mask_placement", says, strengths, apply, run=TURNS) for name, says, strengths, apply in _MASKS),
)

"""Faults of text that is tokenised again: by the trainer, between turns, or beside the ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from holdfast.audit.simulate.fault import Fault
from holdfast.audit.simulate.letters import Letters
from holdfast.audit.simulate.replay import Replay, floats
from holdfast.audit.simulate.training_faults import QUIET
from holdfast.audit.simulate.world import log_softmax
from holdfast.types import Rollout

_CUT = ("response_ids", "rollout_logprobs", "trainer_logprobs", "entropy", "advantages", "weight_versions")


def retold(ids: Sequence[int]) -> list[int]:
    """The ids of the text of these ids."""
    letters = Letters()
    return letters.encode(letters.decode([ids]))[0]


def scored_from_text(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """The trainer scores a share `strength` of the responses from their text, and logs the scores place by place."""
    chosen = rng.random(len(rollouts)) < strength
    texts = [tuple(retold(r.response_ids)) for r in rollouts]
    again = Replay.of(
        [
            Rollout(
                prompt_ids=r.prompt_ids,
                response_ids=ids,
                weight_versions=(r.weight_versions or (0,))[:1] * len(ids),
                step=r.step,
                sequence_id=r.sequence_id,
                extra=r.extra,
            )
            for r, ids in zip(rollouts, texts, strict=True)
        ]
    )
    scores = log_softmax(again.trainer_logits())[again.tokens, again.ids]
    out, end = [], 0
    for r, ids, hit in zip(rollouts, texts, chosen, strict=True):
        start, end = end, end + len(ids)
        count = len(r.response_ids)
        scored = np.minimum(np.resize(scores[start:end], count), 0)
        out.append(replace(r, trainer_logprobs=floats(scored), kl_exact=None) if hit else replace(r, kl_exact=None))
    return out


def retold_history(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """Each turn is a sequence of its own; a share `strength` of the answers stands in later prompts as text's ids."""
    return [turn for r in rollouts for turn in _turns(r, strength, rng)]


def _turns(r: Rollout, strength: float, rng: np.random.Generator) -> Iterator[Rollout]:
    own = np.array(r.response_mask)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], own, [False]]).astype(np.int8)))
    before: list[int] = list(r.prompt_ids)
    done = 0
    for k, (start, stop) in enumerate(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)):
        before += r.response_ids[done:start]
        tokens = {name: tuple(getattr(r, name)[start:stop]) for name in _CUT}
        more = dict.fromkeys(("response_mask", "trust_mask", "turn_ids", "kl_exact"))
        number = 3 * (r.sequence_id or 0) + k
        yield replace(r, prompt_ids=tuple(before), sequence_id=number, **tokens, **more)
        answer = r.response_ids[start:stop]
        before += retold(answer) if rng.random() < strength else answer
        done = stop


def other_texts(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """Every response has its text beside it; in a share `strength` that of another one."""
    letters = Letters()
    texts = letters.decode([r.response_ids for r in rollouts])
    moved = np.flatnonzero(rng.random(len(texts)) < strength)
    for at, given in zip(moved, [texts[i] for i in np.roll(moved, 1)], strict=True):
        texts[at] = given
    return [replace(r, response_text=text) for r, text in zip(rollouts, texts, strict=True)]


TEXT_FAULTS = (
    Fault(
        "scored_from_text",
        "retokenised",
        "the trainer scores {strength:.0%} of the responses from their text, tokenised again",
        (0.1, 0.3, 1.0),
        scored_from_text,
        run={**QUIET, "turns": 1},
    ),
    Fault(
        "retold_history",
        "retokenised",
        "{strength:.0%} of the answers stand in the next turn's prompt as text that was tokenised again",
        (0.05, 0.3, 1.0),
        retold_history,
        run={"turns": 3},
    ),
    Fault(
        "other_texts",
        "retokenised",
        "the texts beside {strength:.0%} of the responses are those of others",
        (0.3, 0.8),
        other_texts,
    ),
)

"""NeMo-Gym's rollouts: the Responses API with token ids, a request per turn.

Each item of `output` that the model wrote has `prompt_token_ids`, `generation_token_ids` and `generation_log_probs`.
The prompt of a later turn begins with the sequence so far, and what it has beyond is the tool's: one sequence. Where it
does not (the history was cut or tokenised anew) a new sequence begins. Source: NVIDIA-NeMo/Gym,
`nemo_gym/openai_utils.py` and `rollout_collection.py`, as of August 2026.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from holdfast.audit.read.columns import Column
from holdfast.audit.read.raw.fields import Unusable, floats, ids, listed, mapping
from holdfast.audit.read.raw.names import Facts
from holdfast.audit.read.raw.records import Record, record_of, turns_of
from holdfast.audit.read.reading import Reading

ANEW = (
    "the prompt of some turns does not begin with the turns before it (history cut, or tokenised anew): such a turn "
    "begins a sequence of its own"
)
_Turn = tuple[Column, Column, Column | None]


def has_ids(answer: Mapping[str, Any]) -> bool:
    """Whether an item of the output has token ids."""
    return any(isinstance(item, Mapping) and "generation_token_ids" in item for item in answer["output"])


def gym_records(answer: Mapping[str, Any], facts: Facts, reading: Reading) -> Iterator[Record]:
    """A sequence for each run of turns in which every prompt continues the turn before."""
    turns: list[_Turn] = []
    for item in listed(answer["output"], "output"):
        turn = _turn(mapping(item, "output"))
        if turn is None:
            continue
        if turns and not _continues(turn, turns[-1]):
            reading.note(ANEW)
            yield _record(turns, facts)
            turns = []
        turns.append(turn)
    if turns:
        yield _record(turns, facts)


def _turn(item: Mapping[str, Any]) -> _Turn | None:
    if item.get("generation_token_ids") is None:
        return None
    tokens = ids(item["generation_token_ids"], "generation_token_ids")
    logprobs = floats(item.get("generation_log_probs"), "generation_log_probs")
    if logprobs is not None and len(logprobs) != len(tokens):
        detail = f"generation_log_probs has {len(logprobs)} entries, generation_token_ids {len(tokens)}"
        raise Unusable("lengths differ", detail)
    return ids(listed(item.get("prompt_token_ids"), "prompt_token_ids"), "prompt_token_ids"), tokens, logprobs


def _continues(turn: _Turn, last: _Turn) -> bool:
    so_far = np.concatenate(last[:2])
    return len(turn[0]) >= len(so_far) and bool((turn[0][: len(so_far)] == so_far).all())


def _record(turns: list[_Turn], facts: Facts) -> Record:
    start = len(turns[0][0])
    whole = np.concatenate(turns[-1][:2])
    own = np.zeros(len(whole), bool)
    logprobs = np.full(len(whole), np.nan, np.float32)
    for prompt, tokens, values in turns:
        own[len(prompt) : len(prompt) + len(tokens)] = True
        if values is not None:
            logprobs[len(prompt) : len(prompt) + len(tokens)] = values
    known = all(values is not None for _, _, values in turns)
    return record_of(
        whole[:start],
        {
            "response_ids": whole[start:],
            "response_mask": own[start:],
            "turn_ids": turns_of(own[start:]),
            "rollout_logprobs": logprobs[start:] if known else None,
        },
        *facts,
    )

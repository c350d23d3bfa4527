"""Rollouts column by column: the form in which the audit measures them.

Token columns are flat: sequence i owns the stretch [offsets[i], offsets[i+1]). What a sequence's source did not give
is said by `present`; the column then holds NaN, -1 or False there, so that missing and faulty are never confused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from holdfast.types import Rollout

Column = np.ndarray

TOKEN_COLUMNS: Mapping[str, np.dtype] = {
    "response_ids": np.dtype(np.int32),
    "rollout_logprobs": np.dtype(np.float32),
    "trainer_logprobs": np.dtype(np.float32),
    "response_mask": np.dtype(np.bool_),
    "kl_exact": np.dtype(np.float32),
    "kl_lower": np.dtype(np.float32),
    "tv_lower": np.dtype(np.float32),
    "tv_upper": np.dtype(np.float32),
    "entropy": np.dtype(np.float32),
    "advantages": np.dtype(np.float32),
    "trust_mask": np.dtype(np.bool_),
    "turn_ids": np.dtype(np.int32),
    "weight_versions": np.dtype(np.int32),
    "experts_changed": np.dtype(np.int32),
    "support_size": np.dtype(np.int32),
}
NUMBER_COLUMNS: Mapping[str, np.dtype] = {
    "reward": np.dtype(np.float32),
    "step": np.dtype(np.int64),
    "sequence_id": np.dtype(np.int64),
    "group_id": np.dtype(np.int64),
    "temperature": np.dtype(np.float32),
    "top_p": np.dtype(np.float32),
    "top_k": np.dtype(np.int64),
    "min_p": np.dtype(np.float32),
}
WORD_COLUMNS = ("environment", "finish_reason", "mask_reason")
TEXT_FIELDS = ("prompt_text", "response_text", "token_texts")
"""Shown of a few sequences and never measured."""

CHUNK_TOKENS = 1 << 18


@dataclass(frozen=True)
class Likeliest:
    """The engine's K likeliest tokens at each of T places, [T, K]: distinct, likeliest first; -inf: not sampled."""

    top_ids: Column
    top_logprobs: Column


@dataclass(frozen=True)
class Chunk:
    """N rollouts with M response tokens in all.

    `tokens[name]` is [M], `numbers[name]` [N], `words[name]` [N] of str or None; a column that no sequence has is
    absent. `present[name]` is [N], True where the source gave the field. `prompt_hashes` [N] tell equal prompts apart
    from different ones. `rollout(i)` gives one of them whole; `keep(i)` a promise of it that holds on to no
    other; a promise may have `whole()`, which also reads the texts that a loader leaves in the file. `likeliest` is
    empty, or has for each rollout what `Reading.likeliest` asked for; `prompt(i)` gives a prompt's tokens alone, where
    that is cheaper than the whole rollout.
    """

    offsets: Column
    tokens: Mapping[str, Column]
    numbers: Mapping[str, Column]
    words: Mapping[str, Column]
    present: Mapping[str, Column]
    prompt_hashes: Column
    rollout: Callable[[int], Rollout]
    keep: Callable[[int], Callable[[], Rollout]]
    likeliest: Sequence[Likeliest | None] = ()
    prompt: Callable[[int], Sequence[int] | Column] | None = None

    def prompt_ids(self, index: int) -> Sequence[int] | Column:
        """The prompt's tokens of one rollout."""
        return self.rollout(index).prompt_ids if self.prompt is None else self.prompt(index)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def token_count(self) -> int:
        """Response tokens of all sequences."""
        return int(self.offsets[-1])


def missing_value(dtype: np.dtype) -> Any:
    """What a column holds where a sequence lacks the field."""
    return {"f": np.nan, "i": -1, "b": False}[dtype.kind]


def pack(rollouts: Iterable[Rollout], tokens: int = CHUNK_TOKENS) -> Iterator[Chunk]:
    """Rollouts in chunks of about `tokens` response tokens."""
    pending: list[Rollout] = []
    size = 0
    for rollout in rollouts:
        pending.append(rollout)
        size += len(rollout.response_ids)
        if size >= tokens:
            yield chunk_of(pending)
            pending, size = [], 0
    if pending:
        yield chunk_of(pending)


def chunk_of(rollouts: Sequence[Rollout]) -> Chunk:
    """These rollouts as columns."""
    lengths = [len(r.response_ids) for r in rollouts]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    tokens, numbers, words, present = {}, {}, {}, {}
    for name, dtype in TOKEN_COLUMNS.items():
        given = [getattr(r, name) for r in rollouts]
        if any(v is not None for v in given):
            parts = [
                np.asarray(v, dtype) if v is not None else np.full(n, missing_value(dtype), dtype)
                for v, n in zip(given, lengths, strict=True)
            ]
            tokens[name] = np.concatenate(parts)
            present[name] = np.array([v is not None for v in given])
    for name, dtype in NUMBER_COLUMNS.items():
        given = [getattr(r, name) for r in rollouts]
        if any(v is not None for v in given):
            numbers[name] = np.array([missing_value(dtype) if v is None else v for v in given], dtype)
            present[name] = np.array([v is not None for v in given])
    for name in WORD_COLUMNS:
        given = [getattr(r, name) for r in rollouts]
        if any(v is not None for v in given):
            words[name] = np.array(given, dtype=object)
            present[name] = np.array([v is not None for v in given])
    hashes = np.array([hash(r.prompt_ids) for r in rollouts], dtype=np.int64)

    def keep(index: int) -> Callable[[], Rollout]:
        return partial(_same, rollouts[index])

    return Chunk(offsets, tokens, numbers, words, present, hashes, tuple(rollouts).__getitem__, keep)


def _same(rollout: Rollout) -> Rollout:
    return rollout


def hash_prompts(tokens: Column, lengths: Column) -> Column:
    """[N] a number per prompt, from all prompts one after the other and the length of each.

    A sum with position-dependent weights: equal prompts agree in every file and every format.
    """
    starts = np.concatenate([[0], np.cumsum(lengths)])
    place = (np.arange(len(tokens)) - np.repeat(starts[:-1], lengths)).astype(np.uint64)
    mixed = (tokens.astype(np.uint64) + np.uint64(1)) * (np.uint64(2) * place + np.uint64(0x9E3779B97F4A7C15))
    mixed ^= mixed >> np.uint64(29)
    sums = np.concatenate([[np.uint64(0)], np.cumsum(mixed * np.uint64(0xBF58476D1CE4E5B9), dtype=np.uint64)])
    return (sums[starts[1:]] - sums[starts[:-1]]).astype(np.int64)


def as_rollouts(chunk: Chunk) -> Iterator[Rollout]:
    """The rollouts of a chunk, one after the other."""
    return (chunk.rollout(i) for i in range(len(chunk)))

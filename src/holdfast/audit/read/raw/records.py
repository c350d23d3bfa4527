"""One rollout as arrays, and many of them as a chunk: what every loader but our own parquet produces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from holdfast.audit.read.columns import (
    CHUNK_TOKENS,
    NUMBER_COLUMNS,
    TOKEN_COLUMNS,
    WORD_COLUMNS,
    Chunk,
    Column,
    Likeliest,
    hash_prompts,
    missing_value,
)
from holdfast.audit.read.raw.fields import Unusable, same_lengths
from holdfast.types import Rollout


@dataclass(frozen=True)
class Record:
    """A rollout whose token fields are arrays; names are those of `Rollout`, what the source lacks is left out."""

    prompt: Column
    tokens: Mapping[str, Column]
    numbers: Mapping[str, float | int] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, Any] = field(default_factory=dict)
    likeliest: Likeliest | None = None

    def __len__(self) -> int:
        return len(self.tokens["response_ids"])

    def rollout(self) -> Rollout:
        """The same as plain tuples."""
        tokens = {name: tuple(column.tolist()) for name, column in self.tokens.items()}
        fields = {**tokens, **self.numbers, **self.words, **self.texts}
        return Rollout(prompt_ids=tuple(self.prompt.tolist()), **fields)


def record_of(
    prompt: Column,
    tokens: Mapping[str, Column | None],
    numbers: Mapping[str, float | int | None] | None = None,
    words: Mapping[str, str | None] | None = None,
    texts: Mapping[str, Any] | None = None,
    likeliest: Likeliest | None = None,
) -> Record:
    """A record from fields that may be None; raises Unusable where token fields differ in length."""
    given: dict[str, Column] = _given(tokens)
    same_lengths(given, len(given["response_ids"]), "response_ids")
    return Record(prompt, given, _given(numbers), _given(words), _given(texts), likeliest)


def _given(fields: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (fields or {}).items() if value is not None}


def cut(ids: Column, own: Column, columns: Mapping[str, Column | None]) -> tuple[Column, Column, dict[str, Any]]:
    """Prompt, response mask and token fields of a sequence logged whole, whose mask and columns have its length.

    The response starts at the first token the policy sampled; a turn begins where the policy begins to speak. Raises
    Unusable for other lengths, and where no token is the policy's own.
    """
    same_lengths({"the mask": own, **columns}, len(ids), "the token ids")
    start = int(own.argmax()) if len(own) else 0
    if not len(own) or not own[start]:
        raise Unusable("no sampled token", "the mask leaves no token that the policy sampled")
    mask = own[start:]
    response = {name: None if column is None else column[start:] for name, column in columns.items()}
    return (
        ids[:start],
        mask,
        {"response_ids": ids[start:], "response_mask": mask, "turn_ids": turns_of(mask), **response},
    )


def turns_of(own: Column) -> Column:
    """Turn of each token from 0: a turn begins where the policy begins to speak."""
    begins = own.copy()
    begins[1:] &= ~own[:-1]
    return np.maximum(np.cumsum(begins, dtype=np.int32) - 1, 0)


def pack_records(records: Iterable[Record], tokens: int = CHUNK_TOKENS) -> Iterator[Chunk]:
    """Records in chunks of about `tokens` response tokens."""
    pending: list[Record] = []
    size = 0
    for record in records:
        pending.append(record)
        size += len(record) + len(record.prompt)
        if size >= tokens:
            yield chunk_of_records(pending)
            pending, size = [], 0
    if pending:
        yield chunk_of_records(pending)


def chunk_of_records(records: Sequence[Record]) -> Chunk:
    """These records as columns."""
    lengths = [len(record) for record in records]
    tokens, numbers, words, present = {}, {}, {}, {}
    for name, dtype in TOKEN_COLUMNS.items():
        given = [record.tokens.get(name) for record in records]
        if any(column is not None for column in given):
            tokens[name] = _joined(given, lengths, dtype)
            present[name] = np.array([column is not None for column in given])
    for name, dtype in NUMBER_COLUMNS.items():
        given = [record.numbers.get(name) for record in records]
        if any(value is not None for value in given):
            numbers[name] = np.array([missing_value(dtype) if v is None else v for v in given], dtype)
            present[name] = np.array([value is not None for value in given])
    for name in WORD_COLUMNS:
        given = [record.words.get(name) for record in records]
        if any(value is not None for value in given):
            words[name] = np.array(given, dtype=object)
            present[name] = np.array([value is not None for value in given])
    prompts = [record.prompt for record in records]
    hashes = hash_prompts(np.concatenate(prompts), np.array([len(p) for p in prompts], np.int64))
    kept = tuple(records)

    def keep(index: int) -> Callable[[], Rollout]:
        return kept[index].rollout

    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    likeliest = tuple(record.likeliest for record in records)
    return Chunk(
        offsets,
        tokens,
        numbers,
        words,
        present,
        hashes,
        rollout=lambda index: kept[index].rollout(),
        keep=keep,
        likeliest=likeliest if any(likeliest) else (),
        prompt=lambda index: kept[index].prompt,
    )


def _joined(given: Sequence[Column | None], lengths: Sequence[int], dtype: np.dtype) -> Column:
    parts = [
        np.full(length, missing_value(dtype), dtype) if column is None else column.astype(dtype, copy=False)
        for column, length in zip(given, lengths, strict=True)
    ]
    return np.concatenate(parts)

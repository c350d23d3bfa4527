"""Which tokens of a response have come up before: in its prompt, or earlier in the response."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdfast.audit.measure.tokens import TokenView
from holdfast.audit.read.columns import Column

MOST_TOKENS = 1 << 16
"""Response tokens of one chunk that are looked at: sorting is dear."""


@dataclass(frozen=True)
class Repeats:
    """The first `sequences` sequences of a chunk: `seen` is flat over their tokens, [offsets[sequences]]."""

    sequences: int
    seen: Column


def repeats_of(view: TokenView, most: int = MOST_TOKENS) -> Repeats:
    """Look at so many sequences that about `most` response tokens are seen, and at their prompts."""
    chunk = view.chunk
    count = int(np.searchsorted(chunk.offsets, most, side="left"))
    count = max(1, min(count, len(chunk)))
    prompts = [np.asarray(chunk.prompt_ids(i), np.int64) for i in range(count)]
    tokens = int(chunk.offsets[count])
    before = np.concatenate([np.zeros(0, np.int64), *prompts])
    owner = np.repeat(np.arange(count, dtype=np.int64), [len(p) for p in prompts])
    ids = np.concatenate([before, view.tokens("response_ids")[:tokens].astype(np.int64)])
    key = (np.concatenate([owner, view.sequence[:tokens].astype(np.int64)]) << 32) | (ids & 0xFFFFFFFF)
    order = np.argsort(key, kind="stable")
    again = np.zeros(len(key), bool)
    again[order[1:]] = key[order][1:] == key[order][:-1]
    return Repeats(count, again[len(before) :])

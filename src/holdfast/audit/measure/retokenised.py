"""What becomes of sampled tokens where their text is tokenised again: which change, and which move."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from holdfast.audit.measure.adding import hash_numbers
from holdfast.audit.measure.tokens import TokenView
from holdfast.audit.read.codec import Codec
from holdfast.audit.read.columns import Column

BEFORE = 8
"""Tokens before a stretch that are encoded with it: the first token of a text is cut in its own way."""
RUN, WINDOW = 3, 24
"""Tokens in a row that must agree behind a change, and how far they are looked for."""
SHORTEST_TEXT = 8
"""Characters of an answer from which on its text tells whose continuation a prompt is."""


@dataclass(frozen=True)
class Reencoded:
    """The own tokens of a chunk beside the encoding of their decoded text; all arrays are flat, one entry per token.

    `looked` are tokens that were encoded again, `changed` those of them that the encoding does not have, `moved` those
    it has at another place. `unknown` counts tokens whose id the vocabulary does not have; their sequences are left
    out.
    """

    looked: Column
    changed: Column
    moved: Column
    unknown: int


@dataclass
class Turns:
    """Prompts that go on where another sequence of the log ended: `kept` its ids, or `broken`, its text in others.

    `sequences` are those of the broken prompts, by their places in the chunk.
    """

    kept: int = 0
    broken: int = 0
    sequences: list[int] = field(default_factory=list)


def reencode(view: TokenView, codec: Codec) -> Reencoded:
    """Decode every stretch of own tokens with the tokens before it, and encode the text again."""
    chunk, own = view.chunk, view.own
    looked, changed, moved = (np.zeros(chunk.token_count, bool) for _ in range(3))
    ids = view.tokens("response_ids")
    outside = (ids < 0) | (ids >= codec.size)
    pieces: list[tuple[int, int, int, list[int]]] = []
    """Sequence, first token, tokens of it that stand before the stretch, and all ids."""
    for i in view.filled.tolist():
        begin, end = int(chunk.offsets[i]), int(chunk.offsets[i + 1])
        if outside[begin:end].any():
            continue
        prompt = [int(t) for t in chunk.prompt_ids(i)[-BEFORE:]]
        before = prompt if all(0 <= t < codec.size for t in prompt) else []
        for start, stop in _stretches(own[begin:end]):
            lead = ids[begin + max(0, start - BEFORE) : begin + start].tolist() if start else before
            pieces.append((i, begin + start, len(lead), [*lead, *ids[begin + start : begin + stop].tolist()]))
    again = codec.encode(codec.decode([piece for *_, piece in pieces]))
    shift: dict[int, int] = defaultdict(int)
    for (i, start, lead, old), new in zip(pieces, again, strict=True):
        where = slice(start, start + len(old) - lead)
        looked[where] = True
        if old == new and not shift[i]:
            continue
        place = np.array(places_in(old, new), np.int64)[lead:]
        offset = place - np.arange(lead, len(old)) + shift[i]
        changed[where] = place < 0
        moved[where] = (place >= 0) & (offset != 0)
        shift[i] += len(new) - len(old)
    return Reencoded(looked, changed, moved, int(outside.sum()))


def _stretches(own: Column) -> list[tuple[int, int]]:
    """(first, after the last) of each run of own tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], own, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def places_in(old: Sequence[int], new: Sequence[int]) -> list[int]:
    """For each id of `old` its place in `new`, -1 for what `new` has not: the nearest agreement goes on.

    >>> places_in([1, 2, 3, 4, 5, 6], [1, 9, 4, 5, 6])
    [0, -1, -1, 2, 3, 4]
    """
    found = [-1] * len(old)
    i = j = 0
    while i < len(old) and j < len(new):
        if old[i] == new[j]:
            found[i] = j
            i, j = i + 1, j + 1
            continue
        step = _nearest(old[i : i + WINDOW + RUN], new[j : j + WINDOW + RUN])
        if step is None:
            break
        i, j = i + step[0], j + step[1]
    return found


def _nearest(old: Sequence[int], new: Sequence[int]) -> tuple[int, int] | None:
    """How many ids to pass over on either side, as few as can be, until RUN in a row agree, or all up to both ends."""
    for total in range(1, 2 * WINDOW):
        for skip in range(max(0, total - WINDOW), min(total, WINDOW) + 1):
            a, b = old[skip : skip + RUN], new[total - skip : total - skip + RUN]
            if a and a == b:
                return skip, total - skip
    return None


def continued(view: TokenView, codec: Codec) -> Turns:
    """Prompts of a chunk that begin with another sequence's prompt and hold its response, as ids or as text alone.

    Of each prompt the longest other prompt counts that it begins with. Where it goes on with no response to it, nor
    with one's text, it tells nothing.
    """
    prompts = [np.asarray(view.chunk.prompt_ids(i), np.int64) for i in range(len(view.chunk))]
    marks = [_marks(prompt) for prompt in prompts]
    known: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        if len(prompt) and view.lengths[i]:
            known[len(prompt), int(marks[i][-1])].append(i)
    lengths = np.array(sorted({size for size, _ in known}, reverse=True), np.int64)
    ends = np.array(sorted({mark for _, mark in known}), np.uint64)
    turns = Turns()
    for i, prompt in enumerate(prompts):
        shorter = lengths[lengths < len(prompt)]
        possible = shorter[np.isin(marks[i][shorter - 1], ends)]
        asked = next((rows for n in possible.tolist() if (rows := known.get((n, int(marks[i][n - 1]))))), None)
        if asked is None:
            continue
        rest = prompt[len(prompts[asked[0]]) :]
        answers = [_ended(_response(view, j), codec) for j in asked]
        if any(len(answer) and np.array_equal(rest[: len(answer)], answer) for answer in answers):
            turns.kept += 1
        elif _same_text(rest, answers, codec):
            turns.broken += 1
            turns.sequences.append(i)
    return turns


def _marks(prompt: Column) -> Column:
    """[T] uint64: a number for each beginning of a prompt, equal where beginnings are."""
    return np.cumsum(hash_numbers(prompt) * (hash_numbers(np.arange(len(prompt)), 1) | np.uint64(1)), dtype=np.uint64)


def _response(view: TokenView, row: int) -> Column:
    return view.tokens("response_ids")[view.chunk.offsets[row] : view.chunk.offsets[row + 1]].astype(np.int64)


def _ended(answer: Column, codec: Codec) -> Column:
    """An answer without the special tokens that end it: a template writes its own."""
    last = len(answer)
    while last and int(answer[last - 1]) in codec.special:
        last -= 1
    return answer[:last]


def _same_text(rest: Column, answers: Sequence[Column], codec: Codec) -> bool:
    if any(len(one) and not (one.min() >= 0 and one.max() < codec.size) for one in (rest, *answers)):
        return False
    said, *texts = codec.decode([rest.tolist(), *(answer.tolist() for answer in answers)])
    said = said.lstrip()
    return any(len(text.strip()) >= SHORTEST_TEXT and said.startswith(text.strip()) for text in texts)

"""Where stretches of the policy's own tokens begin and end inside a response."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdfast.audit.measure.tokens import TokenView
from holdfast.audit.read.columns import Column

NOTHING, OTHERS, OWN = 0, 1, 2
"""What stands beside a stretch: the response's start or end, a token outside the mask, an own one of another turn."""


@dataclass(frozen=True)
class Stints:
    """R stretches of own tokens of one sequence and turn: [begins, ends) as indices into the chunk, in reading order.

    `before` and `after` say what stands there. `outside`: whether any token of the chunk is outside the mask.
    """

    begins: Column
    ends: Column
    before: Column
    after: Column
    outside: bool


def stints_of(view: TokenView) -> Stints:
    """All stretches of own tokens of a chunk."""
    own, count = view.own, view.chunk.token_count
    first = np.zeros(count + 1, bool)
    first[view.chunk.offsets] = True
    cut = first.copy()
    outside = not own.all()
    if outside:
        cut[1:-1] |= own[1:] != own[:-1]
    if view.has("turn_ids"):
        turn = view.tokens("turn_ids")
        cut[1:-1] |= turn[1:] != turn[:-1]
    bounds = np.flatnonzero(cut)
    mine = own[bounds[:-1]] if count else np.zeros(0, bool)
    begins, ends = bounds[:-1][mine], bounds[1:][mine]
    padded = np.append(own, False)
    before = np.where(first[begins], NOTHING, np.where(padded[begins - 1], OWN, OTHERS))
    after = np.where(first[ends], NOTHING, np.where(padded[ends], OWN, OTHERS))
    return Stints(begins, ends, before, after, outside)

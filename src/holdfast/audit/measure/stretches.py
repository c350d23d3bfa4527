"""Drift summed over stretches of responses: what the checks of depth, turn, age, step and environment share.

A stretch is a part of one sequence within one quarter of its length, one turn and one weight version. Its drift is
kept apart by how uncertain the engine was of each token, so that two groups of stretches can be compared at equal
uncertainty: an engine's noise grows with it, and the end of a response may just hold harder tokens than its start.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdfast.audit.measure.tokens import TokenView
from holdfast.audit.read.columns import Column

QUARTERS = 4
SURPRISE_EDGES = (0.01, 0.1, 0.5, 1.5, 4.0)
"""Edges in nats of -log p(engine) between the classes of uncertainty."""
CLASSES = len(SURPRISE_EDGES) + 1


@dataclass(frozen=True)
class Stretches:
    """R stretches of a chunk, in reading order.

    `sums` and `counts` are [R, CLASSES]: Σ|log ratio| and the number of measured tokens in each class of uncertainty;
    `kl` [R] is Σ k3. `quarter` is 0..3, `turn` and `version` are -1 where not recorded.
    """

    sequence: Column
    quarter: Column
    turn: Column
    version: Column
    sums: Column
    counts: Column
    kl: Column

    @property
    def tokens(self) -> Column:
        """[R] measured tokens."""
        return self.counts.sum(1)


def stretches_of(view: TokenView, classes: Column) -> Stretches:
    """Cut a chunk into stretches and sum over each; `classes` is `classes_of` the chunk."""
    starts = _starts(view)
    sequence = view.sequence[starts]
    place = starts - view.chunk.offsets[sequence]
    size = len(starts) * (CLASSES + 1)
    column = np.repeat(np.arange(0, size, CLASSES + 1), np.diff(starts, append=view.chunk.token_count))
    column += classes
    shape = (len(starts), CLASSES + 1)
    return Stretches(
        sequence=sequence,
        quarter=(place * QUARTERS + QUARTERS - 1) // np.maximum(view.lengths[sequence], 1),
        turn=_at(view, "turn_ids", starts),
        version=_at(view, "weight_versions", starts),
        sums=np.bincount(column, weights=view.size, minlength=size).reshape(shape)[:, :CLASSES],
        counts=np.bincount(column, minlength=size).reshape(shape)[:, :CLASSES].astype(np.float64),
        kl=np.add.reduceat(view.k3, starts) if len(starts) else np.zeros(0),
    )


def _starts(view: TokenView) -> Column:
    """First tokens of the stretches."""
    cut = np.zeros(view.chunk.token_count, bool)
    for name in ("turn_ids", "weight_versions"):
        if view.has(name):
            cut[1:] |= view.tokens(name)[1:] != view.tokens(name)[:-1]
    begins, lengths = view.chunk.offsets[view.filled], view.lengths[view.filled]
    for quarter in range(QUARTERS):
        cut[begins + lengths * quarter // QUARTERS] = True
    return np.flatnonzero(cut)


def classes_of(view: TokenView) -> Column:
    """Flat: class of uncertainty of a measured token, CLASSES for all others."""
    surprise = -view.tokens("rollout_logprobs")
    found = np.zeros(len(surprise), np.int8)
    with np.errstate(invalid="ignore"):
        for edge in SURPRISE_EDGES:
            found += surprise >= edge
    return np.where(view.measured, found, np.int8(CLASSES))


def _at(view: TokenView, name: str, starts: Column) -> Column:
    if not view.has(name):
        return np.full(len(starts), -1)
    return view.tokens(name)[starts]

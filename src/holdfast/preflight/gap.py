"""The gap between engine and trainer, and what of it is left without one of its causes: means with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from holdfast.audit.measure.binned import Binned
from holdfast.audit.measure.estimate import Estimate
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

ENTROPY_EDGES = (0.01, 0.1, 0.5, 1.0, 2.0, 4.0)
"""Nats, at which tokens are sorted by how open the trainer was."""
SURE = 0.1
"""Share of the gap that a cause must surely have to be named."""


@dataclass(frozen=True)
class Gap:
    """Means over tokens: |log p(trainer) - log p(engine)| in nats, and k3, an estimate of KL(engine‖trainer)."""

    size: Estimate
    kl: Estimate
    tokens: int


@dataclass(frozen=True)
class Change:
    """What is left of a gap after one thing was switched, and the share of it, 1 - left / before, that this was."""

    left: Gap
    share: Estimate
    kl_removed: Estimate


def gap_of(view: View) -> Gap:
    """The gap in one observation; intervals over prompts."""
    size, kl = _means([view])
    return Gap(size.estimate(), kl.estimate(), int(view.measured.sum()))


def change(before: View, after: View) -> Change:
    """The part of a gap that a switch takes away, by the same prompts with and without it.

    Prompts are resampled for both together: what a prompt makes easy or hard cancels.
    """
    size, kl = _means([before, after])
    share = size.estimate(lambda means: 1 - means[..., 1] / np.maximum(means[..., 0], 1e-30))
    removed = kl.estimate(lambda means: means[..., 0] - means[..., 1])
    return Change(gap_of(after), share, removed)


@dataclass(frozen=True)
class Row:
    """Tokens of one range, `low` to `high` nats of entropy, and their gap."""

    low: float
    high: float | None
    tokens: int
    size: Estimate
    kl: Estimate


def by_entropy(view: View) -> list[Row]:
    """The gap by the trainer's entropy at the token; nothing where it was not measured."""
    if not view.has("entropy"):
        return []
    kind = np.searchsorted(ENTROPY_EDGES, view.tokens("entropy"), side="right")
    size, kl = Binned(len(ENTROPY_EDGES) + 1), Binned(len(ENTROPY_EDGES) + 1)
    rows = np.flatnonzero(view.measured)
    size.add(view.token_fold[rows], kind[rows], view.size[rows])
    kl.add(view.token_fold[rows], kind[rows], view.k3[rows])
    edges = (0.0, *ENTROPY_EDGES)
    return [
        Row(low, edges[place + 1] if place + 1 < len(edges) else None, int(count), _bin(size, place), _bin(kl, place))
        for place, (low, count) in enumerate(zip(edges, size.count(), strict=True))
        if count
    ]


def _bin(binned: Binned, place: int) -> Estimate:
    single = Binned(1)
    single.sums, single.counts = binned.sums[:, [place]], binned.counts[:, [place]]
    return single.estimate()


def _means(views: Sequence[View]) -> tuple[Binned, Binned]:
    """Σ|log ratio| and Σk3, a bin for each view."""
    size, kl = Binned(len(views)), Binned(len(views))
    for place, view in enumerate(views):
        for binned, values in ((size, view.size), (kl, view.k3)):
            binned.add_sequences(view, place, _column(values))
    return size, kl


def _column(values: Column) -> Column:
    return np.asarray(values, np.float64)

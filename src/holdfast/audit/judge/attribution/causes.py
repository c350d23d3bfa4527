"""Sums over tokens from which the drift is divided among its causes: by age of the weights, and within each age."""

from __future__ import annotations

import numpy as np

from holdfast.audit.judge.checks.drift.ages import Ages
from holdfast.audit.judge.checks.drift.drift_with_age import AGES, MOST_STEPS
from holdfast.audit.measure.binned import power_bin
from holdfast.audit.measure.extremes import CONFIDENT, DISAGREES
from holdfast.audit.measure.tokens import FOLDS, LOG_RATIO_LIMIT
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

SIZES = 6
"""Classes of the support's size: 1, 2 to 3, 4 to 7, … and 32 or more."""
QUANTITIES = (
    *("tokens", "k2", "disagreements", "k2_disagreements", "known", "x", "r", "xx", "xr", "rr"),
    *("rerouted", "k2_rerouted", "routed", "supported"),
    *(f"{what}_{size}" for size in range(SIZES) for what in ("restricted", "shift")),
    *("sequences", "weights", "squares"),
)
"""What is summed. `known` are tokens with the trainer's entropy H that are neither disagreements nor rerouted; of them
x = log p(engine) + H, which a wrong temperature turns the log-ratio r into a multiple of. `rerouted` tokens took
another expert in the trainer, `routed` are those whose experts are known. `supported` are tokens of known support,
`restricted_s` of them those drawn from a part of the vocabulary, by class of its size, and `shift_s` the sum of their
log-ratios. `sequences`, with the importance weights of whole sequences and their squares, are those sampled with one
version of the weights."""
Q = {name: place for place, name in enumerate(QUANTITIES)}


class Causes:
    """Those sums by fold of prompts, step and weight version."""

    def __init__(self) -> None:
        self.ages = Ages(1 << (AGES - 2), MOST_STEPS)
        self.versions = False

    def update(self, view: View) -> None:
        """Add a chunk that has log-probabilities of both sides."""
        if not view.has("rollout_logprobs", "trainer_logprobs") or view.chunk.token_count == 0:
            return
        self.versions |= view.has("weight_versions")
        version = view.tokens("weight_versions") if view.has("weight_versions") else np.full(view.chunk.token_count, -1)
        starts = view.runs(version)
        sums = np.column_stack([*_of_tokens(view, starts), *_of_sequences(view, starts)])
        sequence, version = view.sequence[starts], version[starts]
        step, fold = self.ages.steps_of(view)[sequence], view.fold[sequence]
        for one in np.unique(step).tolist():
            here = step == one
            for v in np.unique(version[here]).tolist():
                rows = here & (version == v)
                cell = np.zeros((FOLDS, len(QUANTITIES)))
                np.add.at(cell, fold[rows], sums[rows])
                self.ages.add(one, v, cell)

    def by_class(self) -> Column:
        """[FOLDS, AGES + 1, quantities]: by class of age, tokens of unknown age last."""
        cells = np.zeros((AGES + 1, FOLDS, len(QUANTITIES)))
        for _, age, sums in self.ages.by_age(paced=True):
            cells[int(power_bin(np.array([age]), AGES)[0]) if age >= 0 else AGES] += sums
        return cells.swapaxes(0, 1)


def _of_tokens(view: View, starts: Column) -> list[Column]:
    """Sums over stretches; what no token of a chunk has (a column of None) costs nothing."""
    measured, r = view.measured, view.bounded_ratio
    k2 = r * r / 2
    apart = _flags(len(r), _apart(view))
    rerouted = routed = None
    if view.has("experts_changed") and (found := measured & view.given("experts_changed")).any():
        routed = found
        rerouted = found & (view.tokens("experts_changed") > 0)
        rerouted = rerouted if apart is None else rerouted & ~apart
    known, x, products = _known(view, [flags for flags in (apart, rerouted) if flags is not None]), None, [None] * 4
    if known is not None:
        entropy, shown = view.tokens("entropy"), view.where(known, r)
        x = view.where(known, view.tokens("rollout_logprobs") + entropy).astype(np.float64)
        products = [shown, x * x, x * shown, shown * shown]
    columns = [measured, k2, apart, _both(apart, k2), known, x, *products, rerouted, _both(rerouted, k2), routed]
    columns += _of_support(view, r)
    none = np.zeros(len(starts))
    return [none if column is None else np.add.reduceat(column, starts, dtype=np.float64) for column in columns]


def _apart(view: View) -> Column:
    """Indices of confident disagreements: the engine gave at least half, the trainer two nats less."""
    far = np.flatnonzero(view.log_ratio < -DISAGREES)
    return far[view.tokens("rollout_logprobs")[far] >= CONFIDENT]


def _flags(count: int, indices: Column) -> Column | None:
    if not len(indices):
        return None
    flags = np.zeros(count, bool)
    flags[indices] = True
    return flags


def _known(view: View, others: list[Column]) -> Column | None:
    """Measured tokens with the trainer's entropy that are none of the others."""
    if not view.has("entropy"):
        return None
    known = view.measured & view.given("entropy") & np.isfinite(view.tokens("entropy"))
    for flags in others:
        known &= ~flags
    return known


def _both(flags: Column | None, values: Column) -> Column | None:
    return None if flags is None else flags * values


def _of_support(view: View, r: Column) -> list[Column | None]:
    if not view.has("support_size"):
        return [None] * (1 + 2 * SIZES)
    size = view.tokens("support_size")
    supported = view.measured & view.given("support_size") & (size >= 0)
    inside = [supported & (size > 0) & (power_bin(size, SIZES + 1) == c + 1) for c in range(SIZES)]
    return [supported, *(column for one in inside for column in (one, one * r))]


def _of_sequences(view: View, starts: Column) -> list[Column]:
    """Of each stretch that is a whole sequence with measured tokens: 1, its weight, and the weight squared."""
    ends = np.append(starts[1:], view.chunk.token_count)
    whole = (ends - starts == view.lengths[view.sequence[starts]]) & np.logical_or.reduceat(view.measured, starts)
    total = np.clip(np.add.reduceat(view.log_ratio, starts, dtype=np.float64), -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    weight = np.where(whole, np.exp(total), 0.0)
    return [whole.astype(np.float64), weight, weight * weight]

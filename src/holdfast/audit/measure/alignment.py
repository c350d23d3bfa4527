"""Do the engine's and the trainer's numbers belong together? Shifts by one token, and sums that show the rest."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from holdfast.audit.measure.tokens import TokenView
from holdfast.audit.read.columns import Column

SUSPICIOUS = 0.05
"""Mean |log-ratio| from which a sequence is looked at; a shifted one is at 0.2 or more unless it is nearly certain."""
SHORTEST = 16
"""Fewest neighbours with both log-probabilities for a verdict on a sequence."""
BETTER = 0.5
"""A shifted sequence fits its neighbours' log-probabilities at least this much better than its own."""
FAR = float(np.log(2))
"""|log ratio| from which two probabilities are called far apart."""
CALIBRATION = ("count", "e", "t", "ee", "et", "tt", "change", "size", "far_lost", "far_gained")
"""Columns of `calibration_sums`."""


def find_shifts(view: TokenView) -> Column:
    """[N] s = 1 or -1 where mean |trainer_t - engine_{t+s}| < BETTER · mean |trainer_t - engine_t|, else 0.

    Healthy sequences fit best in place, however much they drift. Sequences of small mean |log-ratio| are passed over,
    which costs nothing and hides nothing.
    """
    shifts = np.zeros(len(view.chunk), np.int8)
    if not view.has("rollout_logprobs", "trainer_logprobs"):
        return shifts
    suspects = (view.sequence_size > SUSPICIOUS * view.sequence_measured) & (view.sequence_measured > SHORTEST)
    if not suspects.any():
        return shifts
    for shift in (1, -1):
        moved, own = _distances(view, shift)
        shifts[suspects & (moved < BETTER * own)] = shift
    return shifts


def _distances(view: TokenView, shift: int) -> tuple[Column, Column]:
    """[N] mean |trainer_t - engine_{t+shift}| and mean |trainer_t - engine_t| over tokens that have both."""
    trainer, near = view.tokens("trainer_logprobs"), np.roll(view.tokens("rollout_logprobs"), -shift)
    both = view.measured & np.roll(view.measured, -shift)
    both[view.chunk.offsets[1:][view.filled] - 1 if shift == 1 else view.chunk.offsets[:-1][view.filled]] = False
    count = view.sum(both)
    count[count < SHORTEST] = np.nan
    with np.errstate(invalid="ignore"):
        return view.sum(np.where(both, np.abs(trainer - near), 0)) / count, view.sum(view.size * both) / count


class AlignedView(TokenView):
    """A chunk with what follows from where the engine's numbers stand beside the trainer's."""

    @cached_property
    def shifted(self) -> Column:
        """[N] by how many tokens the engine's log-probabilities stand late: -1, 0 or 1."""
        return find_shifts(self)

    @cached_property
    def far_below(self) -> Column:
        """Indices of measured tokens to which the trainer gives less than half the engine's probability.

        Here and in what follows from it, sequences with shifted log-probabilities are left out.
        """
        found = np.flatnonzero(self.log_ratio < -FAR)
        return found[self.shifted[self.sequence[found]] == 0] if self.shifted.any() else found

    @cached_property
    def far_above(self) -> Column:
        """Indices of measured tokens to which the trainer gives more than double the engine's probability."""
        found = np.flatnonzero(self.log_ratio > FAR)
        return found[self.shifted[self.sequence[found]] == 0] if self.shifted.any() else found

    @cached_property
    def blank(self) -> Column:
        """Indices of those of `far_below` whose engine log-probability is exactly 0: filled in, not computed."""
        if not len(self.far_below):
            return self.far_below
        return self.far_below[self.tokens("rollout_logprobs")[self.far_below] == 0]

    @cached_property
    def calibration(self) -> Column:
        """[N, 10] sums that show whether both log-probabilities are of one distribution: see `Calibration`."""
        return calibration_sums(self)


def calibration_sums(view: AlignedView) -> Column:
    """[N, 10] per sequence, over measured tokens that are neither blank nor in a shifted sequence.

    Their count; the sums of e, t, e², e·t, t² (engine and trainer log-probabilities); of w and |w| with
    w = exp(t - e) - 1; of -w where the trainer's probability is below half the engine's; of w where it is above double.
    """
    keep = view.measured
    if len(view.blank) or view.shifted.any():
        keep = keep & (np.repeat(view.shifted, view.lengths) == 0)
        keep[view.blank] = False
    names = ("rollout_logprobs", "trainer_logprobs")
    engine, trainer, change = (view.where(keep, v) for v in (*map(view.tokens, names), view.weight_change))
    far = [
        np.bincount(view.sequence[tokens], sign * change[tokens], len(view.chunk))
        for tokens, sign in ((view.far_below, -1), (view.far_above, 1))
    ]
    flat = [keep, engine, trainer, engine * engine, engine * trainer, trainer * trainer, change, np.abs(change)]
    return np.column_stack([*map(view.sum, flat), *far])

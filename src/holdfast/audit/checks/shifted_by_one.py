"""Log-probabilities one place beside their token: the commonest error of an index, and a ratio of about 3."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.checks.check import Facts
from holdfast.audit.columns import Column
from holdfast.audit.finding import Finding, Where
from holdfast.audit.view import View

SUSPICIOUS = 0.05
"""Mean |log-ratio| from which a sequence is looked at; a shifted one is at 0.2 or more unless it is nearly certain."""
SHORTEST = 16
BETTER = 0.5
"""A shifted sequence fits its neighbours' log-probabilities at least this much better than its own."""
FEWEST = 3


class ShiftedByOne:
    """For each suspicious sequence, compares mean |trainer_t - engine_{t+s}| at shifts s = -1, 0 and +1.

    Healthy sequences fit best at 0, however much they drift. Sequences with a small mean |log-ratio| are passed over,
    which costs nothing and hides nothing. A sequence counts with at least SHORTEST measured neighbours.
    """

    name = "shifted_by_one"
    asks = "Do log-probabilities belong to the tokens beside them?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs"})

    def __init__(self) -> None:
        self.shifted = {-1: 0, 1: 0}
        self.suspicious = 0
        self.sequences: list[int] = []

    def update(self, view: View) -> None:
        """Look at the chunk's suspicious sequences."""
        enough = np.maximum(view.sequence_measured, 1)
        suspects = np.flatnonzero((view.sequence_size > SUSPICIOUS * enough) & (view.sequence_measured >= SHORTEST))
        if not len(suspects):
            return
        self.suspicious += len(suspects)
        for shift in self.shifted:
            moved, own = self._distances(view, shift)
            found = suspects[(moved[suspects] < BETTER * own[suspects])]
            self.shifted[shift] += len(found)
            self.sequences += [view.first_sequence + int(i) for i in found[: max(0, 10 - len(self.sequences))]]

    @staticmethod
    def _distances(view: View, shift: int) -> tuple[Column, Column]:
        """[N] mean |trainer_t - engine_{t+shift}| and mean |trainer_t - engine_t| over tokens that have both."""
        engine, trainer = view.tokens("rollout_logprobs"), view.tokens("trainer_logprobs")
        near = np.roll(engine, -shift)
        both = view.measured & np.roll(view.measured, -shift)
        edge = view.chunk.offsets[1:][view.filled] - 1 if shift == 1 else view.chunk.offsets[:-1][view.filled]
        both[edge] = False
        count = view.sum(both)
        count = np.where(count >= SHORTEST - 1, count, np.nan)
        with np.errstate(invalid="ignore"):
            moved = view.sum(np.where(both, np.abs(trainer - near), 0)) / count
        return moved, view.sum(np.where(both, view.size, 0)) / count

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where several sequences fit one place away, and not merely a few of many that fit nowhere."""
        count = sum(self.shifted.values())
        if count < FEWEST or count < 0.05 * self.suspicious:
            return
        shift = max(self.shifted, key=self.shifted.__getitem__)
        share = count / max(1, facts.sequences)
        yield Finding(
            name=self.name,
            kind="data",
            severity="critical",
            headline=f"in {count:,} sequences ({share:.1%}) the engine's log-probabilities stand one token "
            f"{'late' if shift == 1 else 'early'}: they fit the trainer's at a shift of one, and not in place",
            meaning="Every ratio then compares two different tokens. The weights are noise of a factor of three or "
            "more, and masks reject sequences for their index and not for their drift.",
            fix="The log-probability at index t must score response_ids[t]. Look for a missing or doubled first token, "
            "for logits that were not shifted (logits[:, :-1] score ids[:, 1:]), and for a prompt that was cut "
            "differently on the two sides.",
            evidence={
                "sequences": count,
                "share of sequences": share,
                "one late": self.shifted[1],
                "one early": self.shifted[-1],
            },
            where=Where(sequences=tuple(self.sequences)),
            invalidates=share > 0.001,
        )

"""Log-probabilities one place beside their token: the commonest error of an index, and a ratio of about 3."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.finding import Finding, Where
from holdfast.audit.measure.adding import First
from holdfast.audit.measure.view import View

FEWEST = 3


class ShiftedByOne:
    """Counts sequences whose engine log-probabilities fit the trainer's one place away at least twice as well.

    The comparison is `alignment.find_shifts`; from FEWEST such sequences on.
    """

    name = "shifted_by_one"
    asks = "Do log-probabilities belong to the tokens beside them?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs"})

    def __init__(self) -> None:
        self.late = 0
        self.early = 0
        self.sequences = First()

    def update(self, view: View) -> None:
        """Count the chunk's shifted sequences."""
        found = np.flatnonzero(view.shifted)
        self.late += int((view.shifted > 0).sum())
        self.early += int((view.shifted < 0).sum())
        self.sequences.add((view.first_sequence + found[:10]).tolist())

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where several sequences fit one place away."""
        count = self.late + self.early
        if count < FEWEST:
            return
        share = count / max(1, facts.sequences)
        yield Finding(
            name=self.name,
            kind="data",
            severity="critical",
            headline=f"in {count:,} sequences ({share:.1%}) the engine's log-probabilities stand one token "
            f"{'late' if self.late >= self.early else 'early'}: there they fit the trainer's and in place "
            "they do not",
            meaning="Every ratio then compares two different tokens. The weights are noise of a factor of three or "
            "more, and masks reject sequences for their index and not for their drift.",
            fix="The log-probability at index t must score response_ids[t]. Look for a missing or doubled first token, "
            "for logits that were not shifted (logits[:, :-1] score ids[:, 1:]), and for a prompt that was cut "
            "differently on the two sides.",
            evidence={
                "sequences": count,
                "share of sequences": share,
                "one late": self.late,
                "one early": self.early,
            },
            where=Where(sequences=tuple(self.sequences.numbers)),
            invalidates=share > 0.001,
        )

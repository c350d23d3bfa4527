"""Responses that are one token over and over: an engine that computes NaN, or a policy that has collapsed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.finding import Finding, Where
from holdfast.audit.measure.adding import First
from holdfast.audit.measure.view import View

FEWEST = 3
SHARE, ALL = 0.05, 0.5
"""Share of a step's responses from which on it is worth a warning, and from which on nothing is left to train on."""


class RepeatedToken:
    """Counts responses of which nine own tokens in ten are one and the same id (`View.looped`), by step.

    The first step from which on at least SHARE of the responses are such is named. One id in all of them, mostly 0
    ("!" in many vocabularies), is what sampling from NaN logits gives.
    """

    name = "repeated_token"
    asks = "Do responses hold more than one token?"
    needs = frozenset({"response_ids"})

    def __init__(self) -> None:
        self.steps: dict[int, np.ndarray] = {}
        self.ids: Counter[int] = Counter()
        self.sequences = First()

    def update(self, view: View) -> None:
        """Count by step."""
        for step in np.unique(view.step).tolist():
            rows = view.step == step
            counts = self.steps.setdefault(step, np.zeros(2, np.int64))
            counts += int(view.looped[rows].sum()), int(rows.sum())
        found = np.flatnonzero(view.looped)
        self.ids.update(view.tokens("response_ids")[view.chunk.offsets[found]].tolist())
        self.sequences.add((view.first_sequence + found[:10]).tolist())

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where a step has more than a few."""
        steps = sorted(s for s, (looped, count) in self.steps.items() if looped >= max(FEWEST, SHARE * count))
        if not steps:
            return
        looped, count = np.sum([self.steps[s] for s in steps], 0).tolist()
        token, times = self.ids.most_common(1)[0]
        one = times >= 0.9 * sum(self.ids.values())
        since = f" from step {steps[0]} on" if steps[0] >= 0 and len(self.steps) > 1 else ""
        yield Finding(
            name=self.name,
            kind="training",
            severity="critical" if looped >= ALL * count else "warning",
            headline=f"{looped:,} of {count:,} responses{since} are one token over and over"
            + (f", always id {token}" if one else f", most often id {token}"),
            meaning="Nothing is learnt from such responses, and what is learnt is wrong."
            + (" The same id in all of them is what an engine draws from NaN logits." if one else ""),
            fix="Send one prompt to the engine and look at its logits: NaN comes from weights that were synced broken, "
            "an overflow in float16, a quantised or faulty kernel. If they are finite, the policy has collapsed: go "
            "back to a checkpoint before" + (f" step {steps[0]}." if since else " the first of them."),
            evidence={"responses": looped, "token id": token, "share with that id": times / sum(self.ids.values())},
            where=Where(steps=tuple(s for s in steps[:10] if s >= 0), sequences=tuple(self.sequences.numbers)),
        )

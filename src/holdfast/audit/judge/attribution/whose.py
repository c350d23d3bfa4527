"""Whose weights wrote each step: the engine's log-probabilities beside those of several checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Chunk

SURE = 3.0
"""Standard errors by which the nearest checkpoint has to beat the next one."""
FEWEST_STEPS = 3
MOST_STEPS = 4096


@dataclass(frozen=True)
class Writer:
    """One step and the checkpoint nearest to what its engine reported; `step` is -1 where none is recorded.

    `distances` are means of r²/2 a token, r between the engine and each checkpoint; `sure` where the nearest beats the
    next by SURE standard errors over sequences.
    """

    step: int
    nearest: str
    distances: Mapping[str, float]
    sequences: int
    sure: bool


class Whose:
    """Sums of the distance from the engine to each checkpoint, by step; `names` are the checkpoints in order."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.steps: dict[int, list[np.ndarray]] = {}
        """[sequences, 1 + checkpoints] of a step: tokens, then Σ r²/2 of each checkpoint."""

    def update(self, scored: Sequence[Chunk]) -> None:
        """Add a chunk as each checkpoint scored it, in the order of `names`."""
        views = [View(chunk) for chunk in scored]
        sums = [views[0].sequence_measured, *(view.sum(view.log_ratio.astype(np.float64) ** 2 / 2) for view in views)]
        rows = np.column_stack(sums)
        for step in np.unique(views[0].step).tolist():
            here = (views[0].step == step) & (rows[:, 0] > 0)
            if here.any() and (step in self.steps or len(self.steps) < MOST_STEPS):
                self.steps.setdefault(step, []).append(rows[here])

    def writers(self) -> tuple[Writer, ...]:
        """The nearest checkpoint of each step, in order."""
        return tuple(self._writer(step, np.concatenate(self.steps[step])) for step in sorted(self.steps))

    def _writer(self, step: int, rows: np.ndarray) -> Writer:
        tokens, totals = rows[:, 0], rows[:, 1:]
        means = totals.sum(0) / tokens.sum()
        order = np.argsort(means, kind="stable")
        # A ratio of sums: its error is that of Σ (d_i - mean · n_i), d_i the sequence's difference of the two.
        apart = totals[:, order[1]] - totals[:, order[0]]
        residual = apart - (means[order[1]] - means[order[0]]) * tokens
        error = math.sqrt(float((residual**2).sum())) / tokens.sum()
        sure = len(rows) > 1 and means[order[1]] - means[order[0]] > SURE * error
        distances = dict(zip(self.names, means.tolist(), strict=True))
        return Writer(int(step), self.names[order[0]], distances, len(rows), bool(sure))


def findings_of(writers: Sequence[Writer], names: Sequence[str]) -> list[Finding]:
    """A finding where weights did not move as the trainer's did: one checkpoint wrote every step, or they go back."""
    known = [one for one in writers if one.sure]
    if len(known) < FEWEST_STEPS:
        return []
    places = [names.index(one.nearest) for one in known]
    evidence = {f"step {one.step}" if one.step >= 0 else "all": one.nearest for one in known[:24]}
    if len(set(places)) == 1 and places[0] < len(names) - 1:
        return [
            _finding(
                f"the engine had the weights of {known[0].nearest} in all {len(known)} steps that tell them apart",
                "Checkpoints that were given after it are of later steps, unless they were taken after this log ends: "
                "new weights then never reached the engine, and every rollout came from frozen ones.",
                evidence,
            )
        ]
    if back := next((i for i in range(1, len(places)) if places[i] < places[i - 1]), None):
        return [
            _finding(
                f"the engine went back from {known[back - 1].nearest} to {known[back].nearest} at step "
                f"{known[back].step}",
                "Given in the order in which they were trained, checkpoints can only follow one another. A restart "
                "loaded old weights, or engines of several versions share the queue.",
                evidence,
            )
        ]
    return []


def _finding(headline: str, meaning: str, evidence: Mapping[str, str]) -> Finding:
    return Finding(
        name="whose_weights",
        kind="drift",
        severity="critical",
        headline=headline,
        meaning=meaning,
        fix="Check after every sync what the engine serves: score one prompt on both sides, or compare a checksum of "
        "a weight.",
        evidence=dict(evidence),
        settings=settings("less_staleness"),
    )

"""A reward that pays for not trying: the shortest responses get more than the others, and become more."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.finding import Finding, Where
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.adding import Span
from holdfast.audit.measure.binned import power_bin
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

LENGTHS = 24
FEWEST_STEPS, FEWEST = 6, 32
"""Steps, and responses on either side."""
SHORT = 0.5
"""The short ones are at most this many times as long, in the mean, as the others."""
MORE = 0.2
"""By how much their share must rise from the first third of the steps to the last, and their reward exceed, over the
range of rewards."""
ALIKE = 0.05
"""Standard deviation of the short ones' rewards over the range, up to which they are all paid alike."""


class ShortPaid:
    """Splits responses by length, at each doubling, and asks of the short ones three things.

    They are paid better than the others by MORE of the range of rewards, beyond three standard errors; all alike
    (within ALIKE), as a default is and an answer is not; and their share rises by MORE over the run. A policy that
    learns to be brief and right is not meant: its short answers are paid for being right, and some are wrong.
    """

    name = "short_paid"
    asks = "Does trying pay better than giving up?"
    needs = frozenset({"reward", "step"})

    def __init__(self) -> None:
        self.steps: dict[int, Column] = {}
        """Per length class: responses, Σ reward, Σ reward², Σ length."""
        self.paid = Span()

    def update(self, view: View) -> None:
        """Sum by step and length."""
        reward = view.numbers("reward").astype(np.float64)
        length = view.sum(view.own)
        rows = np.flatnonzero(np.isfinite(reward) & (view.step >= 0))
        if not len(rows):
            return
        self.paid.add(reward[rows])
        bins = power_bin(length, LENGTHS)
        for step in np.unique(view.step[rows]).tolist():
            here = rows[view.step[rows] == step]
            table = self.steps.setdefault(step, np.zeros((4, LENGTHS)))
            for row, values in enumerate((None, reward[here], reward[here] ** 2, length[here])):
                table[row] += np.bincount(bins[here], values, LENGTHS)

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding at the length that tells the two kinds apart best."""
        steps, span = sorted(self.steps), self.paid.high - self.paid.low
        if len(steps) < FEWEST_STEPS or not span > 0:
            return
        table = np.stack([self.steps[s] for s in steps])
        third = len(steps) // 3
        found = [(rise, cut) for cut in range(2, LENGTHS) if (rise := _rise(table, cut, third, span)) is not None]
        if not found:
            return
        rise, cut = max(found)
        short, others = table[:, :, :cut].sum((0, 2)), table[:, :, cut:].sum((0, 2))
        first, last = (_share(part, cut) for part in (table[:third], table[-third:]))
        yield Finding(
            name=self.name,
            kind="training",
            severity="critical" if last > 0.5 else "warning",
            headline=f"responses under {1 << (cut - 1)} tokens get {short[1] / short[0]:.2g} each and the others "
            f"{others[1] / others[0]:.2g}, and their share rises from {first:.0%} to {last:.0%}: the reward pays for "
            "not trying",
            meaning="The policy learns that giving up is worth more than trying and failing. Entropy and length fall, "
            "the mean reward may even rise, and nothing of the task is learnt.",
            fix="Give answers that were not submitted, or were empty, no more than a wrong one gets: no default of 0 "
            "beside penalties below 0. Check what the reward function returns on timeouts, empty answers and "
            "exceptions.",
            evidence={
                "reward, short responses": float(short[1] / short[0]),
                "reward, others": float(others[1] / others[0]),
                "share, first third": first,
                "share, last third": last,
                "rise": rise,
            },
            where=Where(steps=tuple(steps[-third:][:10])),
            settings=settings("reward_function"),
        )


def _share(table: Column, cut: int) -> float:
    counts = table[:, 0].sum(0)
    return float(counts[:cut].sum() / max(1.0, counts.sum()))


def _rise(table: Column, cut: int, third: int, span: float) -> float | None:
    """By how much the share of responses below a class of lengths rises, where all three conditions hold."""
    (n, reward, square, length), (m, other, other_square, longer) = (
        part.sum((0, 2)) for part in (table[:, :, :cut], table[:, :, cut:])
    )
    if min(n, m) < FEWEST or length / n > SHORT * longer / m:
        return None
    mean, other_mean = reward / n, other / m
    variance, other_variance = (
        max(0.0, s / k - v**2) for s, k, v in ((square, n, mean), (other_square, m, other_mean))
    )
    error = math.sqrt(variance / n + other_variance / m)
    rise = _share(table[-third:], cut) - _share(table[:third], cut)
    paid = mean - other_mean > max(MORE * span, 3 * error)
    return rise if paid and math.sqrt(variance) <= ALIKE * span and rise > MORE else None

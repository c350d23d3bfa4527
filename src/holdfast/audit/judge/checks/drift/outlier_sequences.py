"""A few sequences drift many times as much as all others: which, how many, and what they have in common."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.lights import KL_HIGH
from holdfast.audit.judge.finding import Finding, Where
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.adding import hash_text
from holdfast.audit.measure.binned import Sizes
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

CAP = 0.5
"""Nats that one token counts at most: a sequence is an outlier by many tokens, not by one."""
SHORTEST = 16
FEWEST, MOST = 3, 0.25
"""Outliers: fewer are chance, a larger share is the run itself."""
TIMES, SPREADS = 5.0, 6.0
"""How far above the median: this factor, and so many of the run's own spreads."""
KEPT, TRAITS = 512, 1 << 16
SHARED, COMMON = 0.8, 0.5
"""A trait is named where this share of the outliers has it, and at most that of all sequences."""


class OutlierSequences:
    """Compares each sequence's mean of min(|log-ratio|, CAP) with the run's own median and spread.

    The spread is that of the upper half, log(third quartile / median) / 0.674, on a log scale: a normal deviation's
    worth. Outliers are TIMES the median and SPREADS spreads above it, at a k3 that nobody calls healthy. Medians and
    counts are of all sequences (at 3 % resolution), traits and places of the KEPT largest.
    """

    name = "outlier_sequences"
    asks = "Do all sequences drift alike?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs"})

    def __init__(self) -> None:
        self.sizes = Sizes()
        self.count = 0
        self.largest: list[tuple[float, int, float, float, tuple[tuple[str, str], ...]]] = []
        self.traits = np.zeros(TRAITS, np.int64)
        """Sequences by a hash of each of their traits: a count may be too large by those that share it."""
        self.drift = 0.0

    def update(self, view: View) -> None:
        """Add the sequences of a chunk."""
        rows = np.flatnonzero((view.sequence_measured >= SHORTEST) & (view.shifted == 0))
        if not len(rows):
            return
        tokens = view.sequence_measured[rows]
        size = view.sum(np.minimum(view.size, np.float32(CAP)))[rows] / tokens
        k3 = view.sequence_k3[rows] / tokens
        self.sizes.add(size)
        self.count += len(rows)
        self.drift += float((k3 * tokens).sum())
        traits = _traits(view)
        for name, values in traits.items():
            for value, times in Counter(values[rows].tolist()).items():
                self.traits[_place(name, str(value))] += times
        limit = self.largest[0][0] if len(self.largest) >= KEPT else -1.0
        for place in np.flatnonzero(size >= limit).tolist():
            row = int(rows[place])
            told = tuple((name, str(values[row])) for name, values in traits.items())
            entry = (float(size[place]), -view.first_sequence - row, float(k3[place]), float(tokens[place]), told)
            (heapq.heappush if len(self.largest) < KEPT else heapq.heappushpop)(self.largest, entry)

    def merge(self, other: OutlierSequences) -> None:
        """Add another's sequences."""
        self.sizes.merge(other.sizes)
        self.count += other.count
        self.drift += other.drift
        self.traits += other.traits
        self.largest = heapq.nlargest(KEPT, self.largest + other.largest)
        heapq.heapify(self.largest)

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding that names the outliers and what they share."""
        if self.count < 8 * FEWEST:
            return
        median, upper = self.sizes.quantile(0.5), self.sizes.quantile(0.75)
        spread = math.log(max(upper / median, 1.1)) / 0.674
        limit = median * max(TIMES, math.exp(SPREADS * spread))
        out = sorted((e for e in self.largest if e[0] > limit and e[2] > KL_HIGH), reverse=True)
        if len(out) < FEWEST or len(out) > MOST * self.count:
            return
        kl = sum(e[2] * e[3] for e in out) / sum(e[3] for e in out)
        carried = sum(e[2] * e[3] for e in out) / self.drift
        times = float(np.median([e[0] for e in out])) / median
        shared = self._shared(out)
        many = f"{len(out)} or more" if len(out) == KEPT else str(len(out))
        yield Finding(
            name=self.name,
            kind="drift",
            severity="warning",
            headline=f"{many} of {self.count:,} sequences ({len(out) / self.count:.1%}) drift {times:.0f} times as "
            f"much as the median one (KL {kl:.2g} per token)" + (f"; {shared}" if shared else ""),
            meaning=f"They carry {carried:.0%} of all divergence. A mean over the batch shows a run that drifts a "
            "little everywhere, and it is a run in which a few sequences were sampled by another policy.",
            fix="Score these sequences again on both sides (numbers below). "
            + (f"What they share, {shared}, is where to look. " if shared else "They share no step, environment, "
               "length or end: look at the server or the batch that wrote them, and at what was retried or resumed. ")
            + "Until then, mask whole sequences.",
            evidence={
                "sequences": len(out),
                "share of sequences": len(out) / self.count,
                "share of the divergence": carried,
                "times the median": times,
                "KL per token in them": kl,
            },
            where=Where(sequences=tuple(-e[1] for e in out[:10])),
            settings=settings("sequence_mask"),
        )  # fmt: skip

    def _shared(self, out: list[tuple[float, int, float, float, tuple[tuple[str, str], ...]]]) -> str:
        """Traits that nearly all outliers have and few others."""
        own = Counter(trait for entry in out for trait in entry[4])
        most = sorted(own.items(), key=lambda item: (-item[1], item[0]))[:8]
        shares = [(trait, count / len(out), self.traits[_place(*trait)] / self.count) for trait, count in most]
        return ", ".join(
            f"{share:.0%} of them have {name} {value} (of all: {of_all:.0%})"
            for (name, value), share, of_all in shares
            if share >= SHARED and of_all <= COMMON
        )


def _place(name: str, value: str) -> int:
    return hash_text(f"{name} {value}") % TRAITS


def _traits(view: View) -> Mapping[str, Column]:
    """[N] of what sequences may have in common."""
    traits: dict[str, Column] = {}
    if view.has("step"):
        traits["step"] = view.step
    for name, said in (("environment", "environment"), ("finish_reason", "finish reason")):
        if view.has(name):
            traits[said] = view.chunk.words[name]
    if view.has("group_id"):
        traits["group"] = view.numbers("group_id")
    power = np.frexp(np.maximum(view.lengths, 1).astype(np.float64))[1] - 1
    traits["a length of at least"] = np.left_shift(1, power.astype(np.int64))
    return traits

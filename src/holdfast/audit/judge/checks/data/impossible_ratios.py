"""Engine log-probabilities with which the tokens beside them were not sampled: far too low, far too often."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.places import Places
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

LIMITS = (6.0, 8.0, 10.0)
"""Nats by which the trainer's log-probability exceeds the engine's."""
EVIDENCE = 21.0
"""Nats: p < 1e-9 for each limit."""
FEWEST = 8
LAST, MOST_LAST = 0.9, 8
"""Share of the tokens that lie within so many of a response's end, from which on the end is named."""


class ImpossibleRatios:
    """Finds more tokens that the trainer finds e^l times as likely as the engine does than sampling allows.

    For a token sampled from the engine's distribution E exp(r) ≤ 1, whatever the trainer is, so by Markov's inequality
    r ≥ l with probability at most e^-l. Of N tokens at most a binomial(N, e^-l) are, and
    P(≥ k) ≤ exp(-(k log(k / N e^-l) - k + N e^-l)) (Chernoff). More of them prove that the engine did not sample with
    the numbers that it logged there; that the trainer drifted proves nothing. Sequences logged one token late or early
    are left to `shifted_by_one`.
    """

    name = "impossible_ratios"
    asks = "Can the engine have sampled with the log-probabilities that it logged?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs"})

    def __init__(self) -> None:
        self.tokens = 0
        self.counts = np.zeros(len(LIMITS), np.int64)
        self.from_end: Counter[int] = Counter()
        self.cut = self.seen = 0
        self.places = Places()

    def update(self, view: View) -> None:
        """Count the tokens beyond each limit, and where the worst of them stand."""
        keep = view.measured
        if view.shifted.any():
            keep = keep & (view.shifted[view.sequence] == 0)
        self.tokens += int(keep.sum())
        found = np.flatnonzero(keep & (view.log_ratio > LIMITS[0]))
        if not len(found):
            return
        ratio = view.log_ratio[found]
        self.counts += [int((ratio > limit).sum()) for limit in LIMITS]
        self.places.add(view, found, ratio)
        self._note_ends(view, found)

    def _note_ends(self, view: View, found: Column) -> None:
        sequence = view.sequence[found]
        left = view.chunk.offsets[sequence + 1] - 1 - found
        self.from_end.update(np.minimum(left, MOST_LAST).tolist())
        self.seen += len(found)
        if view.has("finish_reason"):
            self.cut += int((view.chunk.words["finish_reason"][sequence] == "length").sum())

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where chance is excluded at one of the limits."""
        proven = [
            (limit, int(count), self.tokens * math.exp(-limit))
            for limit, count in zip(LIMITS, self.counts, strict=True)
            if count >= FEWEST and _evidence(int(count), self.tokens * math.exp(-limit)) > EVIDENCE
        ]
        if not proven:
            return
        limit, count, allowed = proven[0]
        where = self._where()
        yield Finding(
            name=self.name,
            kind="data",
            severity="critical",
            headline=f"the engine's log-probabilities are wrong at {count:,} tokens{where}: the trainer finds each of "
            f"them {math.exp(limit):,.0f} times as likely or more, which sampling lets happen {allowed:.1f} times",
            meaning="An engine does not sample, again and again, what it gives next to no probability. The numbers it "
            "logged there are not those it sampled with, so the ratio is wrong by orders of magnitude, and one such "
            "token decides what a mask or a weight does with its sequence.",
            fix="Look at the engine at these places (positions below): speculative or multi-token decoding near a "
            "limit, a request that was resumed, a sampler that draws from other logits than it logs. Leave these "
            "tokens out of response_mask until it is mended.",
            evidence={"tokens": count, "allowed by sampling": allowed, **self._ends()},
            where=self.places.where(),
            settings=settings("engine_logprobs"),
            invalidates=count > 0.001 * max(1, self.tokens),
        )

    def _where(self) -> str:
        last = next((k for k in range(MOST_LAST) if self._within(k) >= LAST), None)
        if last is None:
            return ""
        which = "of responses cut by the length limit" if self.cut >= LAST * self.seen else "of a response"
        return f", nearly all among the last {last + 1} tokens {which}" if last else f", nearly all the last {which}"

    def _within(self, left: int) -> float:
        return sum(self.from_end[k] for k in range(left + 1)) / self.seen

    def _ends(self) -> dict[str, float]:
        return {
            "share among the last 4 tokens": self._within(3),
            "share in responses cut by length": self.cut / self.seen,
        }


def _evidence(count: int, allowed: float) -> float:
    """-log of Chernoff's bound on so many where `allowed` are expected at most."""
    return count * math.log(count / allowed) - count + allowed if count > allowed else 0.0

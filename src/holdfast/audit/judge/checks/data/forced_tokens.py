"""Tokens in the response mask that the policy did not choose: a template, a budget marker, an inserted "Wait"."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.data.exact_zeros import CountsById, ExactZeros
from holdfast.audit.judge.checks.places import FirstById
from holdfast.audit.judge.finding import Finding
from holdfast.audit.measure.view import View

LIMITS = (-5.0, -7.0, -10.0)
EVIDENCE = 21.0
"""Nats: p < 1e-3 after a union over 3 limits and 400,000 token ids."""
FEWEST = 8


class ForcedTokens:
    """Finds token ids that come up, at a log-probability below a limit, more often than sampling can explain.

    In each of N own tokens a given id is sampled at log-probability below l with probability below e^l, whatever the
    contexts are. So its number of such occurrences is at most binomial(N, e^l), and
    P(≥ k) ≤ exp(-(k log(k / N e^l) - k + N e^l)) (Chernoff). Nothing is assumed about the policy or the drift. Zeros
    that all fall on one id (an engine that reports forced tokens as certain) are told here too. Responses that are one
    token over and over are left to `repeated_token`.
    """

    name = "forced_tokens"
    asks = "Did the policy choose every token it is trained on?"
    needs = frozenset({"rollout_logprobs"})

    def __init__(self) -> None:
        self.zeros = ExactZeros()
        self.own = 0
        self.rare = [CountsById() for _ in LIMITS]
        self.at_end = CountsById()
        self.first = FirstById()

    def update(self, view: View) -> None:
        """Count rare tokens by id."""
        self.zeros.update(view)
        engine, ids = view.tokens("rollout_logprobs"), view.tokens("response_ids")
        own = view.own & view.given("rollout_logprobs")
        if view.looped.any():
            own = own & ~view.looped[view.sequence]
        self.own += int(own.sum())
        rare = np.flatnonzero(engine < LIMITS[0])
        rare = rare[own[rare] & np.isfinite(engine[rare])]
        last = np.intersect1d(rare, view.chunk.offsets[1:] - 1)
        self.at_end.add(ids[last])
        below = rare
        for limit, counts in zip(LIMITS, self.rare, strict=True):
            below = below[engine[below] < limit]
            counts.add(ids[below])
        seen = np.union1d(rare, view.blank)
        self.first.add(ids[seen], view.numbers_in_log[view.sequence[seen]], view.position[seen])

    def _forced(self) -> list[tuple[int, int, float]]:
        """(id, occurrences, the limit they are below) that chance does not explain, the most frequent first."""
        found: dict[int, tuple[int, int, float]] = {}
        for limit, counts in zip(LIMITS, self.rare, strict=True):
            expected = self.own * math.exp(limit)
            for token in np.flatnonzero(counts.counts >= max(FEWEST, expected)).tolist():
                k = int(counts.counts[token])
                if k * math.log(k / expected) - k + expected > EVIDENCE:
                    found.setdefault(token, (token, k, limit))
        return sorted(found.values(), key=lambda item: -item[1])

    def _ids(self) -> list[int]:
        zero = self.zeros.one_token()
        return list(dict.fromkeys([token for token, _, _ in self._forced()] + ([zero[0]] if zero else [])))

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """One finding that names the ids."""
        ids, zero, forced = self._ids(), self.zeros.one_token(), self._forced()
        if not ids:
            return
        if forced:
            seen = f"{forced[0][1]:,} times at a probability below {math.exp(forced[0][2]):.1g}"
        else:
            seen = f"{zero[1] if zero else 0:,} times at a log-probability of exactly 0, which the trainer contradicts"
        count = sum(k for _, k, _ in forced) + (zero[1] if zero else 0)
        ends = self.at_end.counts
        yield Finding(
            name=self.name,
            kind="data",
            severity="critical" if zero is not None else "warning",
            headline=f"the policy did not choose token {ids[0]}: it stands in the response mask {seen}"
            + (f", and {len(ids) - 1} other ids do so too" if len(ids) > 1 else ""),
            meaning="A forced token (a chat template, an end marker at the budget, an inserted phrase) has no "
            "gradient of its own to give. Trained on, it gets the sequence's advantage, and its tiny or invented "
            "probability makes the largest ratios of the batch.",
            fix="Set response_mask to False on every token that the sampler inserted, also on the end marker of a "
            "truncated response.",
            evidence={
                "token id": ids[0],
                "occurrences": count,
                "share of own tokens": count / max(1, self.own),
                "of them last in a response": int(ends[ids[0]]) if ids[0] < len(ends) else 0,
                "ids": ", ".join(map(str, ids[:10])),
            },
            where=self.first.where(ids[0]),
            invalidates=zero is not None and zero[1] > 0.001 * max(1, self.own),
        )

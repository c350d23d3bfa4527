"""One prompt in a hundred makes a good part of the drift, or of the gradient."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.finding import Finding, Where
from holdfast.audit.measure.adding import add_up
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

BUCKETS = 1 << 16
FEWEST_PROMPTS = 48
"""Below, one prompt is more than one in fifty, and a few expert flips in it stand out."""
SHARE = 0.15
EXCESS = 6.0
"""The share must also be this multiple of the same prompts' share of tokens: long prompts may carry more."""
FEWEST_TOKENS = 300
"""Tokens that those prompts must have together: below, one wild token makes them."""


class FewPromptsDominate:
    """Share of Σ |log-ratio|, and of Σ |advantage|, on the 1 % of prompts with the most of it.

    A prompt takes part in the gradient where an advantage of its group is not 0, in the drift where tokens were
    measured; only those that take part count. Prompts are told apart by a hash into BUCKETS; with more prompts than
    that, several are counted as one, and dominance is under-, never overstated.
    """

    name = "few_prompts_dominate"
    asks = "Do many prompts take part, rather than a few?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs"})

    def __init__(self) -> None:
        self.tokens = np.zeros(BUCKETS)
        self.sums = {"drift": np.zeros(BUCKETS), "gradient": np.zeros(BUCKETS)}
        self.example = np.full(BUCKETS, np.iinfo(np.int64).max)

    def update(self, view: View) -> None:
        """Sum by prompt."""
        bucket = (view.group.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(48)).astype(np.int64)
        self.tokens += np.bincount(bucket, view.sequence_measured, BUCKETS)
        self.sums["drift"] += np.bincount(bucket, view.sequence_size, BUCKETS)
        if view.has("advantages"):
            pull = view.sum(np.abs(view.tokens("advantages")) * view.own)
            self.sums["gradient"] += np.bincount(bucket, np.nan_to_num(pull), BUCKETS)
        known, row = np.unique(bucket, return_index=True)
        self.example[known] = np.minimum(self.example[known], view.numbers_in_log[row])

    def merge(self, other: FewPromptsDominate) -> None:
        """Add another's sums."""
        self.tokens += other.tokens
        add_up(self.sums, other.sums)
        self.example = np.minimum(self.example, other.example)

    def _top(self, sums: Column) -> tuple[float, float, Column]:
        """The largest prompts' share of the sum, their share of the tokens of all that take part, and their buckets."""
        part = sums > 0
        top = np.argsort(-sums, kind="stable")[: max(1, int(part.sum()) // 100)]
        return float(sums[top].sum() / sums.sum()), float(self.tokens[top].sum() / self.tokens[part].sum()), top

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding for the drift and one for the gradient."""
        for what, sums in self.sums.items():
            prompts = int((sums > 0).sum())
            if prompts < FEWEST_PROMPTS:
                continue
            share, of_tokens, top = self._top(sums)
            if share < SHARE or share < EXCESS * of_tokens or self.tokens[top].sum() < FEWEST_TOKENS:
                continue
            yield Finding(
                name=self.name,
                kind="drift" if what == "drift" else "training",
                severity="warning",
                headline=f"{len(top)} of {prompts:,} prompts carry {share:.0%} of the {what}, "
                f"with {of_tokens:.1%} of the tokens",
                meaning="Their batch is learnt from a few samples, whatever its size: other prompts hardly count, "
                "and the run follows what these few do.",
                fix="Look at these prompts' rollouts (sequences below): a broken environment, an input the two sides "
                "tokenise differently, a reward of another scale. Normalise advantages per group, and filter such "
                "prompts out.",
                evidence={f"share of the {what}": share, "share of tokens": of_tokens, "prompts": len(top)},
                where=Where(sequences=tuple(self.example[top[:10]].tolist())),
            )

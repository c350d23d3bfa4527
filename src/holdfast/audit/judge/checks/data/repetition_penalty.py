"""A repetition, presence or frequency penalty on one side: tokens that came up before are scored by another rule."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.calibration import Value
from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.adding import Sampled
from holdfast.audit.measure.binned import Binned
from holdfast.audit.measure.repeats import repeats_of
from holdfast.audit.measure.stretches import CLASSES
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

ENOUGH = 400_000
"""Tokens that are looked at."""
FEWEST_TOKENS = 1000
APART, LARGE = 0.25, 0.01
"""By how much the mean log-ratios of repeated and new tokens must differ, over the mean |log-ratio|; and that mean."""
LEVEL = 0.998


class RepetitionPenalty:
    """Compares the log-ratio of tokens whose id stands in the prompt or earlier in the response with that of others.

    A penalty makes the engine give repeated ids less, and by renormalisation all others more, than the trainer. So
    the mean log-ratio r = log p(trainer) - log p(engine) is above 0 for repeated ids and below 0 for new ones, however
    well the weights agree. Drift takes no notice of what came before: of either kind E r = -KL, small beside E|r|. The
    two are compared within classes of the engine's surprise (a temperature or a truncation on one side goes with
    that), weighted as Mantel and Haenszel do, and their difference is divided by the mean |r|.
    """

    name = "repetition_penalty"
    asks = "Do both sides score tokens that came up before like new ones?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs"})

    def __init__(self) -> None:
        self.looked: Sampled[Binned] = Sampled(ENOUGH)
        """Of chunks: tokens, Σr and Σ|r| of new and of repeated tokens in each class of surprise."""

    def update(self, view: View) -> None:
        """Look at the first sequences of the chunk."""
        if not view.chunk.token_count or not self.looked.wants(view.key):
            return
        repeats = repeats_of(view)
        n, inside = repeats.sequences, slice(0, len(repeats.seen))
        kind = view.classes[inside].astype(np.int64)
        rows = np.flatnonzero((kind < CLASSES) & (view.size[inside] < 20))
        cell = view.sequence[rows] * (2 * CLASSES) + repeats.seen[rows] * CLASSES + kind[rows]
        parts = [
            np.bincount(cell, values, n * 2 * CLASSES).reshape(n, 2 * CLASSES)
            for values in (None, view.log_ratio[rows], view.size[rows])
        ]
        table = np.zeros((len(view.chunk), 2 * CLASSES * 3))
        table[:n] = np.concatenate(parts, 1)
        sums = Binned(2 * CLASSES * 3)
        sums.add_quantities(view, table)
        self.looked.add(view.key, len(rows), sums)

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where repeated tokens are scored by another rule, for sure."""
        if self.looked.weight < FEWEST_TOKENS:
            return
        every = Binned(2 * CLASSES * 3)
        for one in self.looked.values():
            every.merge(one)
        apart = every.estimate_totals(lambda sums, _: _difference(sums) / _size(sums), LEVEL)
        size = float(_size(every.sums.sum(0)))
        engine = apart.low > APART
        if not (engine or apart.high < -APART) or size < LARGE:
            return
        whose, other = ("engine", "trainer") if engine else ("trainer", "engine")
        new, repeated = _means(every.sums.sum(0))
        yield Finding(
            name=self.name,
            kind="data",
            severity="critical",
            headline=f"the {whose} penalises tokens that are already in the context and the {other} does not: mean log "
            f"ratio {repeated:+.2g} on repeated tokens and {new:+.2g} on new ones, where both should be near 0",
            meaning="A penalty (repetition, presence or frequency) changes the distribution at every token, and the "
            "policy that is trained is not the one that sampled. It looks like heavy drift, at equal weights too; "
            "masks and weights then fight the penalty, and cannot win.",
            fix="Sample with repetition_penalty = 1.0, presence_penalty = 0 and frequency_penalty = 0. A model's "
            "generation_config.json often sets one, and engines read it by themselves (vLLM: --generation-config vllm "
            "ignores it). A mask or a weight does not mend it.",
            evidence={
                "difference over the mean |log ratio|": apart,
                "mean log ratio, repeated tokens": repeated,
                "mean log ratio, new tokens": new,
                "mean |log ratio|": size,
                "tokens looked at": int(self.looked.weight),
            },
            settings=settings("sampling_support"),
            invalidates=True,
        )


def _cells(sums: Column) -> tuple[Column, Column, Column, Column]:
    """Counts [..., 2, CLASSES], mean r, mean |r|, and Mantel and Haenszel's weights [..., CLASSES]."""
    count, ratio, size = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, 2, CLASSES), -3, 0)
    new, seen = count[..., 0, :], count[..., 1, :]
    weight = new * seen / np.maximum(new + seen, 1)
    return count, ratio / np.maximum(count, 1), size / np.maximum(count, 1), weight


def _difference(sums: Column) -> Value:
    _, ratio, _, weight = _cells(sums)
    return (weight * (ratio[..., 1, :] - ratio[..., 0, :])).sum(-1) / np.maximum(weight.sum(-1), 1e-12)


def _size(sums: Column) -> Value:
    _, _, size, weight = _cells(sums)
    return np.maximum((weight * size.mean(-2)).sum(-1) / np.maximum(weight.sum(-1), 1e-12), 1e-12)


def _means(sums: Column) -> tuple[float, float]:
    """Mean r of all new and of all repeated tokens."""
    count, ratio, _, _ = _cells(sums)
    new, seen = (count * ratio).sum(-1) / np.maximum(count.sum(-1), 1)
    return float(new), float(seen)

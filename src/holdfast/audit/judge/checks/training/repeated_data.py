"""The same rollouts twice: a batch trained again, a seed used twice, a data order restarted after a resume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.finding import Finding, Where
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

HEAD, TAIL = 128, 32
SURPRISE = 30.0
"""Nats: two independent samples agree on tokens of this surprise with probability e^-30 = 9e-14."""
LONG = 128
MOST = 400_000
FEWEST = 2


class RepeatedData:
    """Compares responses by a hash of their length, their first HEAD and their last TAIL tokens.

    Short and certain answers repeat by themselves. So a response counts only if the tokens compared have a surprise
    -Σ log p(engine) of at least SURPRISE nats (without log-probabilities: if it is LONG), which makes a single repeat
    proof that it was not sampled anew. Responses that are one token over and over are left to `repeated_token`. The
    first MOST are remembered. The order of prompts is compared step by step as well.
    """

    name = "repeated_data"
    asks = "Is every rollout new?"
    needs = frozenset({"response_ids"})

    def __init__(self) -> None:
        self.seen: dict[int, tuple[int, int]] = {}
        self.looked = 0
        self.within: list[int] = []
        self.across: Counter[tuple[int, int]] = Counter()
        self.examples: list[int] = []
        self.orders: dict[int, int] = {}
        self.sizes: Counter[int] = Counter()
        self.prompts: dict[int, set[int]] = {}

    def update(self, view: View) -> None:
        """Compare this chunk's responses with all before, and add them."""
        hashes, surprise = _fingerprint(view)
        telling = np.flatnonzero((surprise >= SURPRISE) & ~view.looped)
        self.looked += len(telling)
        steps = view.step
        for i in telling.tolist():
            key, step, number = int(hashes[i]), int(steps[i]), view.first_sequence + i
            if key not in self.seen:
                if len(self.seen) < MOST:
                    self.seen[key] = (step, number)
                continue
            before = self.seen[key][0]
            if before == step:
                self.within.append(number)
            else:
                self.across[before, step] += 1
                self.examples = [*self.examples[:9], number]
        if view.has("step"):
            self._add_orders(view)

    def _add_orders(self, view: View) -> None:
        """A sum of prompt hashes that depends on their place in the step."""
        for step in np.unique(view.step).tolist():
            hashes = view.chunk.prompt_hashes[view.step == step].astype(np.uint64)
            place = (self.sizes[step] + np.arange(len(hashes))).astype(np.uint64) * np.uint64(2) + np.uint64(1)
            mixed = (hashes ^ (hashes >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15) * place
            self.orders[step] = (self.orders.get(step, 0) + int((mixed ^ (mixed >> np.uint64(29))).sum())) % (1 << 64)
            self.sizes[step] += len(hashes)
            few = self.prompts.setdefault(step, set())
            few.update(np.unique(hashes)[: 4 - len(few)].tolist())

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """Findings for repeats across steps, within a step, and of the order of prompts."""
        across = sum(self.across.values())
        if across >= FEWEST:
            (before, step), most = self.across.most_common(1)[0]
            yield Finding(
                name=self.name,
                kind="training",
                severity="critical" if across > 0.2 * self.looked else "warning",
                headline=f"{across:,} responses ({across / self.looked:.1%} of those compared) had been trained on in "
                f"an earlier step, {most:,} of step {step} in step {before}",
                meaning="A second pass over the same samples is off-policy and over-fits them. If it was not meant, "
                "a buffer is not emptied, or a resume replays its batches.",
                fix="Clear the rollout buffer after each step, save the data loader's state and the random state in "
                "checkpoints, and give every request a seed of its own. A replay on purpose needs weights from the "
                "policy that sampled.",
                evidence={"repeated responses": across, "share": across / self.looked},
                where=Where(
                    steps=tuple(s for (_, s), _ in self.across.most_common(10)), sequences=tuple(self.examples)
                ),
            )
        if len(self.within) >= FEWEST:
            share = len(self.within) / self.looked
            yield Finding(
                name=self.name,
                kind="training",
                severity="critical" if share > 0.2 else "warning",
                headline=f"{len(self.within):,} responses ({share:.1%} of those compared) repeat another one of the "
                "same step token for token",
                meaning="Samples of a group are not independent: the baseline is computed from copies, and the group "
                "is smaller than it looks.",
                fix="Give each sample its own seed (or none), and look for an engine that caches whole responses.",
                evidence={"repeated responses": len(self.within), "share": share},
                where=Where(sequences=tuple(self.within[:10])),
            )
        yield from self._repeated_order(facts)

    def _repeated_order(self, facts: Facts) -> Iterable[Finding]:
        first: dict[int, int] = {}
        repeats = []
        for step in sorted(self.orders):
            if len(self.prompts[step]) < 4:
                continue
            before = first.setdefault(self.orders[step], step)
            if before != step:
                repeats.append((before, step))
        if not repeats:
            return
        before, step = repeats[0]
        yield Finding(
            name=self.name,
            kind="training",
            severity="warning" if len(repeats) < len(self.orders) / 2 else "info",
            headline=f"{len(repeats)} of {len(self.orders)} steps take the prompts of an earlier step in the same "
            f"order (step {step} those of step {before})",
            meaning="The data order started again: after a resume the run trains a second time on its first prompts "
            "and never sees the others. Epochs that are not shuffled look the same.",
            fix="Save and restore the data loader's position and its random state, and shuffle each epoch anew.",
            evidence={"steps": len(repeats)},
            where=Where(steps=tuple(s for _, s in repeats[:10])),
        )


_WEIGHTS = np.random.default_rng(0).integers(1, 1 << 63, HEAD + TAIL, np.uint64) * np.uint64(2) + np.uint64(1)


def _fingerprint(view: View) -> tuple[Column, Column]:
    """[N] hash of the compared tokens of each response, and their surprise in nats.

    The hash is multilinear, Σ weight_k · (id_k + 1) mod 2^64 with random odd weights.
    """
    starts, lengths = view.chunk.offsets[:-1].tolist(), view.lengths.tolist()
    heads = [min(n, HEAD) for n in lengths]
    tails = [min(n - h, TAIL) for n, h in zip(lengths, heads, strict=True)]
    count = np.add(heads, tails)

    def ends(values: Column) -> Column:
        parts = []
        for start, n, head, tail in zip(starts, lengths, heads, tails, strict=True):
            parts += [values[start : start + head], values[start + n - tail : start + n]]
        return np.concatenate(parts)

    def sums(values: Column, dtype: type) -> Column:
        total = np.concatenate([np.zeros(1, dtype), np.cumsum(values, dtype=dtype)])
        return total[np.cumsum(count)] - total[np.cumsum(count) - count]

    weights = np.concatenate([_WEIGHTS[:n] for n in count.tolist()])
    hashes = sums((ends(view.tokens("response_ids")).astype(np.uint64) + np.uint64(1)) * weights, np.uint64)
    hashes ^= view.lengths.astype(np.uint64)
    if not view.has("rollout_logprobs"):
        return hashes, np.where(view.lengths >= LONG, np.inf, 0.0)
    engine = ends(view.tokens("rollout_logprobs"))
    return hashes, sums(np.where(ends(view.own) & np.isfinite(engine), -engine, 0), np.float64)

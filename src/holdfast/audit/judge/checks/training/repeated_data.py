"""The same rollouts twice: a batch trained again, a seed used twice, a data order restarted after a resume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.finding import Finding, Where
from holdfast.audit.measure.adding import SampledRows, hash_numbers
from holdfast.audit.measure.tokens import FILE_BITS
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

HEAD, TAIL = 128, 32
SURPRISE = 30.0
"""Nats: two independent samples agree on tokens of this surprise with probability e^-30 = 9e-14."""
LONG = 128
MOST = 400_000
BASE = 0x9E3779B97F4A7C15
FEWEST = 2


@dataclass
class _Order:
    """A hash of prompts in their order, Σ h(prompt_i) · BASE^i mod 2^64, and how many they are: parts can be joined."""

    hash: int = 0
    count: int = 0

    def add(self, prompts: Column) -> None:
        """Append prompts, by their hashes."""
        powers = np.full(len(prompts), BASE, np.uint64)
        powers[:1] = pow(BASE, self.count, 1 << 64)
        self.hash = (self.hash + int((hash_numbers(prompts) * np.cumprod(powers, dtype=np.uint64)).sum())) % (1 << 64)
        self.count += len(prompts)


def _joined(parts: Mapping[int, _Order]) -> int:
    """The hash of all prompts, file after file."""
    total = count = 0
    for place in sorted(parts):
        total = (total + pow(BASE, count, 1 << 64) * parts[place].hash) % (1 << 64)
        count += parts[place].count
    return total


class RepeatedData:
    """Compares responses by a hash of their length, their first HEAD and their last TAIL tokens.

    Short and certain answers repeat by themselves. So a response counts only if the tokens compared have a surprise
    -Σ log p(engine) of at least SURPRISE nats (without log-probabilities: if it is LONG), which makes a single repeat
    proof that it was not sampled anew. Responses that are one token over and over are left to `repeated_token`. The
    responses of the smallest hashes are compared, about MOST. The order of prompts is compared step by step as well.
    """

    name = "repeated_data"
    asks = "Is every rollout new?"
    needs = frozenset({"response_ids"})

    def __init__(self) -> None:
        self.responses = SampledRows(MOST)
        self.orders: dict[int, dict[int, _Order]] = {}
        """The order of a step's prompts in each file."""
        self.prompts: dict[int, set[int]] = {}

    def update(self, view: View) -> None:
        """Note the fingerprint, step and number of each response that can tell, and the order of the prompts."""
        hashes, surprise = _fingerprint(view)
        telling = np.flatnonzero((surprise >= SURPRISE) & ~view.looped)
        rows = {"step": view.step[telling], "number": view.numbers_in_log[telling]}
        self.responses.add(hash_numbers(hashes[telling]), rows)
        if view.has("step"):
            place = view.first_sequence >> FILE_BITS
            for step in np.unique(view.step).tolist():
                prompts = view.chunk.prompt_hashes[view.step == step]
                self.orders.setdefault(step, {}).setdefault(place, _Order()).add(prompts)
                few = self.prompts.setdefault(step, set())
                few.update(np.unique(prompts)[: max(0, 4 - len(few))].tolist())

    def _repeats(self) -> tuple[int, Column, Column, Column]:
        """Responses compared; and of those that repeat an earlier one its step, their own and their numbers, [R]."""
        table = self.responses.table()
        if not table:
            none = np.zeros(0, np.int64)
            return 0, none, none, none
        order = np.lexsort((table["number"], table["key"]))
        key, step, number = (table[name][order] for name in ("key", "step", "number"))
        new = np.ones(len(key), bool)
        new[1:] = key[1:] != key[:-1]
        before = step[np.flatnonzero(new)][np.cumsum(new) - 1]
        rows = np.flatnonzero(~new)
        rows = rows[np.argsort(number[rows], kind="stable")]
        return len(key), before[rows], step[rows], number[rows]

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """Findings for repeats across steps, within a step, and of the order of prompts."""
        looked, earlier, steps, numbers = self._repeats()
        same = earlier == steps
        pairs = Counter(zip(earlier[~same].tolist(), steps[~same].tolist(), strict=True))
        across, within = int((~same).sum()), int(same.sum())
        if across >= FEWEST:
            often = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:10]
            (before, step), most = often[0]
            yield Finding(
                name=self.name,
                kind="training",
                severity="critical" if across > 0.2 * looked else "warning",
                headline=f"{across:,} responses ({across / looked:.1%} of those compared) had been trained on in "
                f"an earlier step, {most:,} of step {step} in step {before}",
                meaning="A second pass over the same samples is off-policy and over-fits them. If it was not meant, "
                "a buffer is not emptied, or a resume replays its batches.",
                fix="Clear the rollout buffer after each step, save the data loader's state and the random state in "
                "checkpoints, and give every request a seed of its own. A replay on purpose needs weights from the "
                "policy that sampled.",
                evidence={"repeated responses": across, "share": across / looked},
                where=Where(steps=tuple(s for (_, s), _ in often), sequences=tuple(numbers[~same][:10].tolist())),
            )
        if within >= FEWEST:
            share = within / looked
            yield Finding(
                name=self.name,
                kind="training",
                severity="critical" if share > 0.2 else "warning",
                headline=f"{within:,} responses ({share:.1%} of those compared) repeat another one of the "
                "same step token for token",
                meaning="Samples of a group are not independent: the baseline is computed from copies, and the group "
                "is smaller than it looks.",
                fix="Give each sample its own seed (or none), and look for an engine that caches whole responses.",
                evidence={"repeated responses": within, "share": share},
                where=Where(sequences=tuple(numbers[same][:10].tolist())),
            )
        yield from self._repeated_order(facts)

    def _repeated_order(self, facts: Facts) -> Iterable[Finding]:
        first: dict[int, int] = {}
        repeats = []
        orders = {step: _joined(parts) for step, parts in self.orders.items()}
        for step in sorted(orders):
            if len(self.prompts[step]) < 4:
                continue
            before = first.setdefault(orders[step], step)
            if before != step:
                repeats.append((before, step))
        if not repeats:
            return
        before, step = repeats[0]
        yield Finding(
            name=self.name,
            kind="training",
            severity="warning" if len(repeats) < len(orders) / 2 else "info",
            headline=f"{len(repeats)} of {len(orders)} steps take the prompts of an earlier step in the same "
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

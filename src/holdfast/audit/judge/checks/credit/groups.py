"""Rewards and advantages of a run, a number per sequence, cut into groups of answers to one prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from holdfast.audit.measure.adding import SampledRows, hash_numbers
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

MOST = 400_000
"""Sequences that are remembered."""
ALIKE = 1e-3
"""Relative difference up to which the advantages of one sequence's tokens are one number."""
TOLERANCE = 0.02
"""Share of the root mean square advantage below which two advantages, or an advantage and 0, are equal."""
COLUMNS = ("number", "step", "group", "prompt", "reward", "advantage", "tokens")


@dataclass
class SequenceTable:
    """Sequences that have a reward and one advantage for all their own tokens, in reading order."""

    rows: SampledRows = field(default_factory=lambda: SampledRows(MOST))
    alike: int = 0
    varying: int = 0
    """Sequences whose tokens have advantages of their own, as a critic or rewards by turn give."""

    def update(self, view: View) -> None:
        """Take in one chunk that has rewards and advantages."""
        first, middle, last, count = _own_tokens(view)
        values = view.tokens("advantages")[np.stack([first, middle, last])].astype(np.float64)
        reward = view.numbers("reward").astype(np.float64)
        known = (count > 0) & np.isfinite(values).all(0) & np.isfinite(reward)
        alike = np.ptp(values, 0) <= ALIKE * np.abs(values).max(0) + 1e-9
        self.varying += int((known & ~alike).sum())
        rows = np.flatnonzero(known & alike)
        self.alike += len(rows)
        whole = {
            "number": view.numbers_in_log,
            "step": view.step,
            "group": view.group,
            "prompt": view.chunk.prompt_hashes,
            "reward": reward,
            "advantage": values[0],
            "tokens": count,
        }
        step, group = (hash_numbers(v[rows]) >> np.uint64(32) for v in (view.step, view.group))
        keys = (np.where(view.step[rows] >= 0, step, group) << np.uint64(32)) | group
        self.rows.add(keys, {name: whole[name][rows] for name in COLUMNS})

    def sequences_by_group(self) -> Grouped | None:
        """All of it, cut into groups; None where the log does not say which sequences answer one prompt.

        Where each sequence has a group of its own although prompts repeat within a step, equal prompts are the group.
        """
        if not self.alike or self.varying > 0.1 * (self.alike + self.varying):
            return None
        table = {name: values for name, values in self.rows.table().items() if name in COLUMNS}
        grouped = Grouped(table, "group")
        if len(grouped.size) > 0.9 * len(table["number"]):
            grouped = Grouped(table, "prompt")
        one_prompt = len(np.unique(table["prompt"])) == len(np.unique(table["group"])) == 1
        return None if one_prompt or not (grouped.size > 1).any() else grouped


class Grouped:
    """Sequences sorted by step and group, in reading order within a group; and sums over groups [G]."""

    def __init__(self, table: dict[str, Column], by: str) -> None:
        order = np.lexsort((table["number"], table[by], table["step"]))
        self.by = by
        self.table = {name: values[order] for name, values in table.items()}
        step, group = self.table["step"], self.table[by]
        new = np.ones(len(order), bool)
        new[1:] = (step[1:] != step[:-1]) | (group[1:] != group[:-1])
        self.starts = np.flatnonzero(new)
        self.size = np.diff(np.append(self.starts, len(order)))
        self.reward, self.advantage = self.table["reward"], self.table["advantage"]

    def sum(self, values: Column) -> Column:
        """[G] sum of a number per sequence."""
        return np.add.reduceat(values, self.starts)

    def spread(self, values: Column) -> Column:
        """[N] each value: replaced by its group's, of [G]."""
        return np.repeat(values, self.size)

    @cached_property
    def scale(self) -> float:
        """Root mean square advantage."""
        return float(np.sqrt(np.mean(self.advantage**2)))

    @cached_property
    def tolerance(self) -> float:
        """By how much two equal advantages may differ."""
        return TOLERANCE * self.scale

    @cached_property
    def mean(self) -> Column:
        """[G] mean advantage."""
        return self.sum(self.advantage) / self.size

    @cached_property
    def paid_apart(self) -> Column:
        """[G] whether the members' rewards differ."""
        apart = np.maximum.reduceat(self.reward, self.starts) - np.minimum.reduceat(self.reward, self.starts)
        return apart > 1e-6 * max(1e-6, float(np.abs(self.reward).max()))

    @cached_property
    def centred(self) -> Column:
        """[G] whether advantages sum to 0, over sequences or over tokens, but for an offset that a whole step shares.

        Such an offset comes from whitening over its tokens; it is at most three tenths of the scale.
        """
        tokens = self.table["tokens"]
        by_token = self.sum(self.advantage * tokens) / self.sum(tokens)
        shift = np.zeros(len(self.size))
        steps = self.table["step"][self.starts]
        for one in np.unique(steps):
            here = steps == one
            shift[here] = np.median(self.mean[here & (self.size > 1)]) if (here & (self.size > 1)).any() else 0.0
        shift[np.abs(shift) > 0.3 * self.scale] = 0.0
        return np.minimum(np.abs(self.mean), np.minimum(np.abs(by_token), np.abs(self.mean - shift))) <= self.tolerance

    @cached_property
    def orderly(self) -> Column:
        """[G] whether equal rewards have equal advantages, and larger rewards no smaller ones."""
        group = self.spread(np.arange(len(self.size)))
        order = np.lexsort((self.advantage, self.reward, group))
        rise, gain = np.diff(self.reward[order]), np.diff(self.advantage[order])
        tie = np.abs(rise) <= 1e-6 * max(1e-6, float(np.abs(self.reward).max()))
        bad = np.where(tie, np.abs(gain) > self.tolerance, gain < -self.tolerance)
        bad &= group[order][1:] == group[order][:-1]
        return np.bincount(group[order][1:][bad], minlength=len(self.size)) == 0

    @cached_property
    def slope_sign(self) -> Column:
        """[G] 1 where the advantage rises with the reward within the group, -1 where it falls, 0 where neither."""
        reward = self.reward - self.spread(self.sum(self.reward) / self.size)
        covariance = self.sum(reward * self.advantage)
        floor = self.tolerance * np.sqrt(self.sum(reward**2))
        return np.where(self.paid_apart & (np.abs(covariance) > floor), np.sign(covariance), 0)

    @cached_property
    def complete(self) -> bool:
        """Whether nearly all groups have one size: then no member was left out of the log."""
        sizes = np.bincount(self.size)
        return bool(sizes.max() >= 0.95 * len(self.size))

    def of_the_batch(self) -> bool:
        """Whether advantages are one rising line of the reward over each step, centred there: normalised by batch."""
        if abs(float(self.advantage.mean())) > 0.3 * self.scale:
            return False
        step = np.unique(self.table["step"], return_inverse=True)[1]
        count = np.bincount(step)
        reward, advantage = (v - (np.bincount(step, v) / count)[step] for v in (self.reward, self.advantage))
        variance = np.bincount(step, reward**2)
        line = np.bincount(step, reward * advantage) / np.maximum(variance, 1e-12)
        left = advantage - line[step] * reward
        return bool((left**2).sum() < 0.02 * (advantage**2).sum() and (line >= 0).all())

    def wrong_cut(self) -> tuple[str, int] | None:
        """How sequences were cut instead: ("blocks", size) of neighbours in reading order, or ("turns", count) dealt.

        Found where nine in ten of the cut's parts are centred, and parts whose members' advantages are all 0 prove
        nothing. None where no cut of 2 to 64 fits.
        """
        order = np.argsort(self.table["number"], kind="stable")[:20_000]
        step, advantage = self.table["step"][order], self.advantage[order]
        bounds = np.flatnonzero(np.r_[True, step[1:] != step[:-1], True])
        parts = np.split(advantage, bounds[1:-1])
        for size in sorted(range(2, 65), key=lambda k: (k != int(self.size.max()), k)):
            for kind in ("blocks", "turns"):
                rows = [_cut(part, kind, size) for part in parts if len(part) >= 2 * size]
                cut = np.concatenate(rows) if rows else np.zeros((0, size))
                cut = cut[(np.abs(cut) > self.tolerance).any(1)]
                if len(cut) >= 8 and (np.abs(cut.mean(1)) <= self.tolerance).mean() > 0.9:
                    return kind, size
        return None


def _cut(values: Column, kind: str, size: int) -> Column:
    """[parts, size] values in blocks of neighbours, or dealt out in turns to as many parts."""
    whole = values[: len(values) // size * size]
    return whole.reshape(-1, size) if kind == "blocks" else whole.reshape(size, -1).T


def _own_tokens(view: View) -> tuple[Column, Column, Column, Column]:
    """[N] each sequence's first, middle and last own token, as indices into the chunk, and how many it has.

    Sequences without own tokens get any token.
    """
    own = np.flatnonzero(view.own & view.given("advantages"))
    ends = np.searchsorted(own, view.chunk.offsets)
    count = np.diff(ends)
    if not len(own):
        nowhere = np.zeros(len(count), np.int64)
        return nowhere, nowhere, nowhere, count
    low, high = ends[:-1], np.maximum(ends[1:] - 1, 0)
    clip = len(own) - 1
    first, middle, last = (own[np.minimum(k, clip)] for k in (low, (low + high) // 2, high))
    return first, middle, last, count

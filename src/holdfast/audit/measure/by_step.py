"""The course of a run from its tokens: reward, length, truncation and entropy by step, with their standard errors."""

from __future__ import annotations

import numpy as np

from holdfast.audit.course import Column, Course, Series
from holdfast.audit.measure.adding import add_up
from holdfast.audit.measure.view import View

_SUMS = ("reward", "length", "truncated", "entropy")


class ByStep:
    """Sums and squares of one number per sequence by step; every step in a few numbers.

    `truncated` is told by a finish reason ("length"). A group is equal where all its rewards are, and has two or more.
    Where no entropy is recorded, -log p(engine) of the sampled tokens stands for it. Standard errors take sequences for
    independent, but for those of the reward, which take groups: a prompt's rewards are alike.
    """

    def __init__(self) -> None:
        self.sums: dict[int, dict[str, Column]] = {}
        self.longest: dict[int, int] = {}
        self.groups: dict[int, dict[int, tuple[float, float, int]]] = {}

    def update(self, view: View) -> None:
        """Take in a chunk whose rollouts name their step."""
        if not view.has("step"):
            return
        numbers = self._numbers(view)
        for step in np.unique(view.step[view.step >= 0]).tolist():
            rows = np.flatnonzero(view.step == step)
            kept = self.sums.setdefault(step, {})
            for name, values in numbers.items():
                known = values[rows][np.isfinite(values[rows])]
                kept.setdefault(name, np.zeros(3))
                kept[name] += len(known), known.sum(), np.square(known).sum()
            self.longest[step] = max(self.longest.get(step, 0), int(numbers["length"][rows].max()))
            if "reward" in numbers:
                self._group(view, step, rows, numbers["reward"])

    def merge(self, other: ByStep) -> None:
        """Add another's steps; a group may lie in both."""
        add_up(self.sums, other.sums)
        for step, longest in other.longest.items():
            self.longest[step] = max(self.longest.get(step, 0), longest)
        for step, groups in other.groups.items():
            mine = self.groups.setdefault(step, {})
            for group, (low, high, count) in groups.items():
                known = mine.get(group, (low, high, 0))
                mine[group] = (min(low, known[0]), max(high, known[1]), count + known[2])

    @staticmethod
    def _numbers(view: View) -> dict[str, Column]:
        """[N] each number of the chunk's sequences, NaN where it is not known."""
        out = {"length": view.sum(view.own).astype(float)}
        if view.has("reward"):
            out["reward"] = np.where(view.chunk.present["reward"], view.numbers("reward"), np.nan).astype(float)
        if view.has("finish_reason"):
            reasons = view.chunk.words["finish_reason"]
            cut = np.array([reason == "length" for reason in reasons], float)
            out["truncated"] = np.where(view.chunk.present["finish_reason"], cut, np.nan)
        if view.has("entropy") or view.has("rollout_logprobs"):
            out["entropy"] = _entropy(view)
        return out

    def _group(self, view: View, step: int, rows: Column, reward: Column) -> None:
        """Lowest and highest reward and the number of responses of each group."""
        kept = self.groups.setdefault(step, {})
        for group, value in zip(view.group[rows].tolist(), reward[rows].tolist(), strict=True):
            if np.isfinite(value):
                low, high, count = kept.get(group, (value, value, 0))
                kept[group] = (min(low, value), max(high, value), count + 1)

    def course(self) -> Course:
        """The series so far."""
        steps = sorted(self.sums)
        series = {}
        for name in _SUMS:
            known = [s for s in steps if self.sums[s].get(name, np.zeros(3))[0] > 0]
            if not known:
                continue
            count, total, squares = np.array([self.sums[s][name] for s in known]).T
            mean = total / count
            spread = np.sqrt(np.maximum(squares / count - mean**2, 0))
            if name == "reward":
                groups = np.array([len(self.groups.get(s, ())) for s in known])
                count = np.where(groups > 0, groups, count)
            series[name] = Series(np.array(known), mean, spread / np.sqrt(count))
            if name == "reward":
                series["reward_std"] = Series(np.array(known), spread)
        if steps:
            series["length_max"] = Series(np.array(steps), np.array([float(self.longest[s]) for s in steps]))
        shared = {s: [g for g in groups.values() if g[2] > 1] for s, groups in self.groups.items()}
        known = [s for s in steps if shared.get(s)]
        if known:
            equal = [float(np.mean([g[1] - g[0] <= 1e-9 for g in shared[s]])) for s in known]
            series["equal_groups"] = Series(np.array(known), np.array(equal))
        return Course(series)


def _entropy(view: View) -> Column:
    """[N] mean entropy of each sequence's own tokens, NaN where none is known."""
    values = np.full(view.chunk.token_count, np.nan)
    if view.has("rollout_logprobs"):
        engine = view.tokens("rollout_logprobs")
        with np.errstate(invalid="ignore"):
            values = np.where(np.isfinite(engine) & (engine <= 0), -engine, np.nan)
    if view.has("entropy"):
        recorded = view.tokens("entropy")
        values = np.where(view.given("entropy") & np.isfinite(recorded), recorded, values)
    known = view.own & np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return view.sum(np.where(known, values, 0)) / view.sum(known)

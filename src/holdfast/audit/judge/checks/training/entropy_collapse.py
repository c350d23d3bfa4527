"""Entropy that falls towards nothing, beside the reward: a policy that stops exploring, or one that has learnt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.finding import Finding, Where
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.adding import Sampled, Span
from holdfast.audit.measure.contrast import trend_chance
from holdfast.audit.measure.estimate import Estimate
from holdfast.audit.measure.tokens import FOLDS
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

FELL_TO = 0.6
"""The last third of the steps has less than this share of the first third's entropy."""
COLLAPSED_TO = 0.25
FEWEST_STEPS = 6
UNSURE = 0.5
"""Width of the 95 % interval of the rewards' rise, over their range, from which on it says nothing."""
FEWEST_UNITS = 4
"""Groups of prompts in the first and in the last third, below which that interval says nothing either."""
UNLIKELY = 0.005
TOP = 0.002
"""Share of tokens whose part of the covariance is reported: KL-Cov's for its smaller models."""
LOOKED_AT = 4_000_000
"""Tokens of which the largest covariances are sought; the covariance itself is over all."""
FULL_REWARD = 1.0
"""What verifiable tasks pay for a right response. A run that never saw as much may be stuck below it."""
SOLVED = 0.8
"""The newest sixth of the steps has a mean reward this far up from the lowest reward to the highest."""


class EntropyCollapse:
    """Compares the entropy of the last third of the steps with the first, and measures what drives it.

    Where no entropy is recorded, -log p(engine) at the sampled token stands for it: its mean over samples is the
    engine's entropy. To first order a policy gradient changes the entropy by -η Cov(log p, A) (arXiv 2505.22617).

    Certainty is also what learning leads to, so the reward decides how bad it is. Worth a word only: a reward that
    rose from the first third to the last and did not fall from the middle one, and a solved task, whose newest rewards
    are SOLVED of the way from the lowest to the highest, which is at least FULL_REWARD. A warning, critical below
    COLLAPSED_TO: all else, and runs without rewards. Rises and falls are those outside a 95 % interval over prompts.
    """

    name = "entropy_collapse"
    asks = "Does the policy still explore?"
    needs = frozenset({"step", "rollout_logprobs"})

    def __init__(self) -> None:
        self.steps: dict[int, np.ndarray] = {}
        self.rewards = _Rewards()
        self.moments = np.zeros((FOLDS, 4))
        self.top: Sampled[Column] = Sampled(LOOKED_AT)
        """Of chunks: the covariance in the tokens of largest covariance, and in all where it is positive."""

    def update(self, view: View) -> None:
        """Sum the entropy by step, and the moments of log p and A by fold."""
        engine = view.tokens("rollout_logprobs")
        with np.errstate(invalid="ignore"):
            known = view.own & np.isfinite(engine) & (engine <= 0)
        entropy = -engine
        if view.has("entropy"):
            recorded = view.tokens("entropy")
            entropy = np.where(np.isfinite(recorded) & view.given("entropy"), recorded, entropy)
        sums, counts = view.sum(np.where(known, entropy, 0)), view.sum(known)
        for step in np.unique(view.step[view.step >= 0]):
            rows = view.step == step
            self.steps.setdefault(int(step), np.zeros(2))
            self.steps[int(step)] += sums[rows].sum(), counts[rows].sum()
        if view.has("reward"):
            self.rewards.add(view)
        if view.has("advantages"):
            self._covary(view, engine, known & view.given("advantages") & np.isfinite(view.tokens("advantages")))

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where the entropy fell steadily to less than FELL_TO."""
        steps = sorted(step for step, (_, count) in self.steps.items() if count > 0)
        if len(steps) < FEWEST_STEPS:
            return
        entropy = np.array([self.steps[step][0] / self.steps[step][1] for step in steps])
        third = len(steps) // 3
        first, last = float(entropy[:third].mean()), float(entropy[-third:].mean())
        if not (last < FELL_TO * first and trend_chance(-entropy) < UNLIKELY):
            return
        covariance, course = self._covariance(), self.rewards.course(steps)
        gone = last < COLLAPSED_TO * first
        most, positive = np.sum([np.zeros(2), *self.top.values()], 0).tolist()
        yield Finding(
            name=self.name,
            kind="training",
            severity="info" if course.solved or course.rose or course.unsure else "critical" if gone else "warning",
            headline=f"entropy fell from {first:.3g} to {last:.3g} nats per token between steps {steps[0]} and "
            f"{steps[-1]}{course.words}",
            meaning=_meaning(course)
            + (
                f" {most / positive:.0%} of the covariance that drives it sits in {TOP:.1%} of the tokens."
                if positive > 0
                else ""
            ),
            fix=_fix(course),
            evidence={
                "entropy, first third": first,
                "entropy, last third": last,
                **course.evidence,
                **({} if covariance is None else {"covariance of log p and A": covariance}),
                **({f"share of the top {TOP:.1%}": most / positive} if positive > 0 else {}),
            },
            where=Where(steps=tuple(steps[-third:])[-10:]),
            settings={} if course.solved or course.rose else settings("covariance_control"),
        )

    def _covary(self, view: View, logprobs: Column, known: Column) -> None:
        """Moments Σlog p, ΣA, Σ(A log p) and counts by fold; sums over the tokens of largest covariance."""
        p, a = np.where(known, logprobs, 0), np.where(known, view.tokens("advantages"), 0)
        tokens = view.sum(known)
        moments = (view.sum(p), view.sum(a), view.sum(p.astype(np.float64) * a), tokens)
        for column, values in enumerate(moments):
            self.moments[:, column] += np.bincount(view.fold, weights=values, minlength=FOLDS)
        count = int(tokens.sum())
        if count * TOP < 1 or not self.top.wants(view.key):
            return
        positive = ((p - moments[0].sum() / count) * (a - moments[1].sum() / count))[known]
        most = np.partition(positive, len(positive) - int(count * TOP))[-int(count * TOP) :]
        self.top.add(view.key, count, np.array([np.maximum(most, 0).sum(), np.maximum(positive, 0).sum()], np.float64))

    def _covariance(self) -> Estimate | None:
        """Cov(log p, A) with its interval over prompts; None without advantages."""
        filled = np.flatnonzero(self.moments[:, 3])
        if len(filled) < 2:
            return None
        draws = np.random.default_rng(0).multinomial(len(filled), np.full(len(filled), 1 / len(filled)), 400)
        low, high = np.quantile(_covariance(draws @ self.moments[filled]), [0.025, 0.975])
        return Estimate(float(_covariance(self.moments.sum(0))), float(low), float(high))


@dataclass(frozen=True)
class _Course:
    """What the reward did while the entropy fell: means by third and of the newest steps, and what that amounts to."""

    means: tuple[float, float, float, float] | None = None
    rose: bool = False
    solved: bool = False
    unsure: bool = False
    """Too few rewards to tell whether they rose."""

    @property
    def words(self) -> str:
        """The end of the headline."""
        if self.means is None:
            return ""
        first, _, last, newest = self.means
        if self.solved:
            return f", with the reward at {newest:.3g} now"
        if self.unsure and not self.rose:
            return f"; there are too few rewards to say whether they rose ({first:.3g} to {last:.3g})"
        return f", while the reward {'rose' if self.rose else 'did not rise'} ({first:.3g} to {last:.3g})"

    @property
    def evidence(self) -> dict[str, float]:
        """The means by name."""
        names = ("first third", "middle third", "last third", "newest steps")
        return {f"reward, {name}": mean for name, mean in zip(names, self.means or (), strict=False)}


class _Rewards:
    """Rewards by step and fold of prompts, and the range that they span."""

    def __init__(self) -> None:
        self.sums: dict[int, Column] = {}
        self.paid = Span()

    def add(self, view: View) -> None:
        """Take in a chunk that has rewards."""
        reward = view.numbers("reward")
        known = view.chunk.present["reward"] & np.isfinite(reward) & (view.step >= 0)
        if not known.any():
            return
        self.paid.add(reward[known])
        for step in np.unique(view.step[known]):
            rows = known & (view.step == step)
            sums = self.sums.setdefault(int(step), np.zeros((FOLDS, 2)))
            sums[:, 0] += np.bincount(view.fold[rows], weights=reward[rows], minlength=FOLDS)
            sums[:, 1] += np.bincount(view.fold[rows], minlength=FOLDS)

    def course(self, steps: Sequence[int]) -> _Course:
        """What they did over these steps; nothing is known where a part of them has none."""
        third = len(steps) // 3
        parts = (steps[:third], steps[third:-third], steps[-third:], steps[-max(2, len(steps) // 6) :])
        sums = np.array([sum((self.sums[s] for s in part if s in self.sums), np.zeros((FOLDS, 2))) for part in parts])
        total = sums.sum(1)
        filled = np.flatnonzero(sums[..., 1].sum(0))
        if not total[:, 1].all() or len(filled) < 2:
            return _Course()
        first, middle, last, newest = (total[:, 0] / total[:, 1]).tolist()
        draws = np.random.default_rng(0).multinomial(len(filled), np.full(len(filled), 1 / len(filled)), 400)
        drawn = np.einsum("df,pfc->pcd", draws, sums[:, filled])
        with np.errstate(invalid="ignore"):
            means = drawn[:, 0] / drawn[:, 1]
        low, high = self.paid.low, self.paid.high
        rise, late = np.nanquantile(means[2] - means[0], 0.025), np.nanquantile(means[2] - means[1], 0.975)
        wide = bool(np.nanquantile(means[2] - means[0], 0.975) - rise > UNSURE * (high - low) > 0)
        return _Course(
            means=(first, middle, last, newest),
            rose=bool(rise > 0 and late >= 0),
            unsure=wide or bool((sums[[0, 2], :, 1] > 0).sum(1).min() < FEWEST_UNITS),
            solved=high >= FULL_REWARD and newest >= low + SOLVED * (high - low) > low,
        )


def _meaning(course: _Course) -> str:
    if course.solved:
        return (
            "The task is all but solved: the newest rewards are close to the best that this run has seen, and a policy "
            "that knows the answer is sure of it. Nothing is wrong with that, but there is little left to learn from "
            "these prompts: groups in which every response is right have no advantage."
        )
    if course.rose:
        return (
            "The policy learns and grows surer of what it does. That is what learning looks like, up to a point: where "
            "the reward flattens out below what the task allows, there is too little left to explore with."
        )
    return (
        "The policy repeats what it is already sure of. Rewards flatten out, the responses of a group become the same "
        "and their advantages vanish; what is lost cannot be learnt back."
    )


def _fix(course: _Course) -> str:
    if course.solved:
        return "Stop here, or go on with harder prompts, and start those from a checkpoint that still explores."
    control = (
        "take the few tokens of largest covariance out of the gradient (Clip-Cov) or hold them back (KL-Cov), raise "
        "the upper clip, or add an entropy bonus that tracks a target."
    )
    if course.rose:
        return f"Nothing while the reward rises. If it stops too early: {control}"
    return f"{control[0].upper()}{control[1:]} Start again from a checkpoint before the fall."


def _covariance(moments: Column) -> Column:
    p, a, product, count = np.moveaxis(moments, -1, 0)
    return np.asarray(product / count - (p / count) * (a / count))

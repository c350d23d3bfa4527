"""One policy's log-probabilities are at another temperature than the other's."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.calibration import (
    FEWEST_TOKENS,
    Calibration,
    explained,
    exponent,
    inverse_slope,
    slope,
    truncated_side,
)
from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.adding import Span, add_up
from holdfast.audit.measure.tokens import UNKNOWN
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

MARGIN = 0.015
EXPLAINED = 0.03
"""Share of the log-ratios' variance that the slope must explain; in healthy runs it is below 0.01."""
FROM_THE_START = 0.5
TOLD = 1.5
"""Factor up to which the temperature can be told."""


class TemperatureMismatch:
    """Fits trainer = slope · engine over sampled tokens, allowing for noise in both.

    With trainer ∝ engine^β the log-ratio is r ≈ (1 - β)(-engine - H), so tokens of low probability move to one side.
    Noise in the engine's numbers lowers the slope of trainer on engine and raises the inverse of the slope of engine
    on trainer: β lies between the two. Both must be off 1 on the same side, with 99.8 % confidence. To first order
    1 - β = Var(r) / Cov(r, -engine), from which the temperature is told (to about 0.05 between 0.7 and 1.3).

    A policy that sharpens while it is trained differs from its stale rollouts in the same way, and from all rollouts
    of an engine whose weights are never exchanged. A wrong temperature is there at equal weights too, so the rollouts
    of the freshest weights must show it, where versions are recorded, and so must the first third of the steps, at
    FROM_THE_START of the distance from 1 that the last third has.
    """

    name = "temperature_mismatch"
    asks = "Are both log-probabilities at one temperature?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs"})

    def __init__(self) -> None:
        self.calibration = Calibration()
        self.freshest = Calibration()
        self.freshness = UNKNOWN
        self.temperatures = Span()
        self.steps: dict[int, Column] = {}

    def update(self, view: View) -> None:
        """Add the moments of both log-probabilities, and the temperatures that are recorded."""
        self.calibration.update(view)
        freshness = view.freshness.max(initial=UNKNOWN)
        if freshness > self.freshness:
            self.freshest, self.freshness = Calibration(), freshness
        if self.freshness > UNKNOWN:
            self.freshest.update(view, view.freshness == self.freshness)
        if view.has("step"):
            for step in np.unique(view.step[view.step >= 0]).tolist():
                sums = view.calibration[view.step == step].sum(0)
                self.steps[step] = self.steps[step] + sums if step in self.steps else sums
        if view.has("temperature"):
            self.temperatures.add(view.numbers("temperature")[view.chunk.present["temperature"]])

    def merge(self, other: TemperatureMismatch) -> None:
        """Add another's sums; of the freshest rollouts those that are the freshest of both."""
        if other.freshness > self.freshness:
            self.freshest, self.freshness = other.freshest, other.freshness
        elif other.freshness == self.freshness:
            add_up(self.freshest, other.freshest)
        add_up(self.calibration, other.calibration)
        add_up(self.steps, other.steps)
        self.temperatures.merge(other.temperatures)

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where β is not 1."""
        c = self.calibration
        if c.tokens < FEWEST_TOKENS or c.value(explained) < EXPLAINED or truncated_side(c):
            return
        low, high = c.estimate(slope), c.estimate(inverse_slope)
        if not (low.low > 1 + MARGIN or high.high < 1 - MARGIN) or self._comes_later(low.value > 1):
            return
        factor = 1 / max(c.value(exponent), 0.1)
        recorded = self.temperatures.low if self.temperatures.low == self.temperatures.high else None
        yield Finding(
            name=self.name,
            kind="data",
            severity="critical",
            headline=f"the trainer's log-probabilities are at {_say(factor)} the engine's temperature: their slope on "
            f"the engine's is {low.value:.3f} to {high.value:.3f} instead of 1",
            meaning="The two numbers describe different distributions, at equal weights too. Ratios are then wrong "
            "at every token that was not certain, and an algorithm that trusts them trains a policy nobody samples.",
            fix=_fix(factor, recorded),
            evidence={
                "slope": low,
                "inverse of the slope of engine on trainer": high,
                "share of the log-ratios' variance explained": c.value(explained),
                "trainer's temperature over the engine's": factor,
                **({"recorded temperature": recorded} if recorded is not None else {}),
            },
            settings=settings("sampling_support", temperature=recorded or 1.0),
            invalidates=True,
        )

    def _comes_later(self, steep: bool) -> bool:
        """Whether the freshest rollouts, or the first steps, do not show it: then weights have come apart meanwhile."""
        c = self.freshest
        statistic, sign = (slope, 1) if steep else (inverse_slope, -1)
        if c.tokens >= FEWEST_TOKENS and sign * (c.value(statistic) - 1) < MARGIN / 2:
            return True
        steps = sorted(self.steps)
        third = len(steps) // 3
        if third == 0:
            return False
        first, last = (np.sum([self.steps[s] for s in part], 0) for part in (steps[:third], steps[-third:]))
        if min(first[0], last[0]) < FEWEST_TOKENS:
            return False
        return bool(sign * (statistic(first) - 1) < FROM_THE_START * sign * (statistic(last) - 1))


def _say(factor: float) -> str:
    if factor > TOLD:
        return f"more than {TOLD:g} times"
    return f"less than {1 / TOLD:.2g} times" if factor < 1 / TOLD else f"about {factor:.2f} times"


def _fix(factor: float, recorded: float | None) -> str:
    engine = (
        "Let the engine log what it sampled from (vLLM: logprobs_mode=processed_logprobs), and divide the trainer's "
        "logits by the same temperature before the softmax."
    )
    if recorded is None or recorded == 1:
        return engine
    if abs(factor * recorded - 1) < abs(factor / recorded - 1):
        return f"Sampling was at temperature {recorded:.2g}, and the trainer seems to compute at 1. {engine}"
    return f"Sampling was at temperature {recorded:.2g}, and the engine seems to log before it is applied. {engine}"

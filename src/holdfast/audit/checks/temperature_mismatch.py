"""One policy's log-probabilities are at another temperature than the other's."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.binned import Binned
from holdfast.audit.checks.check import Facts
from holdfast.audit.checks.weight_balance import LEVEL, WeightBalance
from holdfast.audit.columns import Column
from holdfast.audit.finding import Finding
from holdfast.audit.view import View

MARGIN = 0.015
EXPLAINED = 0.1
"""Share of the log-ratios' variance that the slope must explain; in healthy runs it is below 0.01."""


class TemperatureMismatch:
    """Fits trainer = slope · engine over sampled tokens, allowing for noise in both.

    With trainer ∝ engine^β the log-ratio is r ≈ (1 - β)(-engine - H), so tokens of low probability move to one side.
    Noise in the engine's numbers lowers the slope of trainer on engine and raises the inverse of the slope of engine
    on trainer: β lies between the two. Both must be off 1 on the same side, with 99.8 % confidence. To first order
    1 - β = Var(r) / Cov(r, -engine), from which the temperature is told (to about 0.05 between 0.7 and 1.3).
    """

    name = "temperature_mismatch"
    asks = "Are both log-probabilities at one temperature?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs"})

    def __init__(self) -> None:
        self.moments = Binned(6)
        self.balance = WeightBalance()
        self.temperatures: set[float] = set()

    def update(self, view: View) -> None:
        """Sum the first and second moments of each sequence."""
        engine = np.where(view.measured, view.tokens("rollout_logprobs"), np.float32(0))
        trainer = engine + view.log_ratio
        sums = [engine, trainer, engine * engine, engine * trainer, trainer * trainer]
        self.moments.add_quantities(view, np.column_stack([view.sequence_measured, *map(view.sum, sums)]))
        self.balance.update(view)
        if view.has("temperature") and len(self.temperatures) < 10:
            self.temperatures |= set(np.unique(view.numbers("temperature")[view.chunk.present["temperature"]]).tolist())

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where β is not 1."""
        if facts.measured_tokens < 1000:
            return
        means = self.moments.mean()
        engine, both, trainer = covariance(means)
        if not (both > 0 and engine > 0 and trainer > 0):
            return
        low = self.moments.estimate(lambda m: covariance(m)[1] / covariance(m)[0], LEVEL)
        high = self.moments.estimate(lambda m: covariance(m)[2] / covariance(m)[1], LEVEL)
        spread = engine + trainer - 2 * both
        explained = (both - engine) ** 2 / (spread * engine)
        imbalance = float(self.balance.imbalance(self.balance.sums.mean()))
        off = low.low > 1 + MARGIN or high.high < 1 - MARGIN
        if not off or explained < EXPLAINED or not -0.85 < imbalance < 0.25:
            return
        beta = 1 - spread / (engine - both)
        recorded = min(self.temperatures) if len(self.temperatures) == 1 else None
        yield Finding(
            name=self.name,
            kind="data",
            severity="critical",
            headline=f"the trainer's log-probabilities are at about {1 / max(beta, 0.05):.2g} times the engine's "
            f"temperature: their slope on the engine's is {low.value:.3f} to {high.value:.3f} instead of 1",
            meaning="The two numbers describe different distributions, at equal weights too. Ratios are then wrong "
            "at every token that was not certain, and an algorithm that trusts them trains a policy nobody samples.",
            fix=_fix(1 / max(beta, 0.05), recorded),
            evidence={
                "slope": low,
                "inverse of the slope of engine on trainer": high,
                "share of the log-ratios' variance explained": float(explained),
                "trainer's temperature over the engine's": float(1 / max(beta, 0.05)),
                **({"recorded temperature": recorded} if recorded is not None else {}),
            },
            invalidates=True,
        )


def covariance(means: Column) -> tuple[Column, Column, Column]:
    """Var(engine), Cov(engine, trainer), Var(trainer) from [..., 6] means per sequence."""
    count = means[..., 0]
    e, t, ee, et, tt = (means[..., k] / count for k in range(1, 6))
    return ee - e * e, et - e * t, tt - t * t


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

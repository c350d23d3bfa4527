"""How far engine and trainer are apart, against what frameworks and labs call healthy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.lights import KL_HIGH, PROBABILITY_HIGH, RATIO_HIGH
from holdfast.audit.judge.finding import Finding, Severity
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.binned import Binned
from holdfast.audit.measure.view import View

MOST_RATIO = 10.0
PROBABILITY = "mean difference of probabilities"


class DriftLevel:
    """Three means over tokens, each with its limit in the wild: KL (k3), |Δp|, and exp|log ratio|.

    A ratio and a k3 enter with at most MOST_RATIO, so that one wild token does not stand for the run;
    few_tokens_dominate looks for those. |Δp| alone is worth a word: it weighs tokens by their probability, so an open
    policy exceeds its limit at a KL and at ratios that nobody calls a problem.
    """

    name = "drift_level"
    asks = "Is the drift within what others train with?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs"})

    def __init__(self) -> None:
        self.kl, self.probability, self.ratio = Binned(1), Binned(1), Binned(1)

    def update(self, view: View) -> None:
        """Sum the three."""
        size = np.minimum(view.size, np.float32(np.log(MOST_RATIO)))
        with np.errstate(invalid="ignore", over="ignore"):
            higher = np.exp(np.maximum(view.tokens("rollout_logprobs"), view.tokens("trainer_logprobs")))
        self.kl.add_sequences(view, 0, np.minimum(view.k3, MOST_RATIO))
        self.probability.add_sequences(view, 0, higher * -np.expm1(-view.size))
        self.ratio.add_sequences(view, 0, np.exp(size))

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where at least one mean is above its limit beyond chance."""
        lights = (
            ("KL per token (k3)", self.kl, KL_HIGH, "prime-rl"),
            (PROBABILITY, self.probability, PROBABILITY_HIGH, "verl"),
            ("mean exp|log ratio|", self.ratio, RATIO_HIGH, "NeMo-RL"),
        )
        red = [name for name, binned, limit, _ in lights if binned.estimate(level=0.998).low > limit]
        if not red:
            return
        name, binned, limit, source = next(light for light in lights if light[0] == red[0])
        kl = self.kl.mean()[0]
        yield Finding(
            name=self.name,
            kind="drift",
            severity=_severity(red, kl),
            headline=f"{name} is {binned.mean()[0]:.3g}; {source} calls more than {limit:g} a problem",
            meaning="The responses come from a policy that is visibly not the one being trained. Healthy dense models "
            "show a KL near .0002 per token at equal weights, mixtures of experts .001 to .002.",
            fix="If it is there at equal weights too, it is the engine: precision, kernels, sampling settings, a "
            "faulty weight sync. If it grows with age only, it is staleness. Until then, mask what is far off.",
            evidence={
                **{f"{what} (limit {high:g}, {who})": found.estimate() for what, found, high, who in lights},
            },
            settings=settings("sequence_mask"),
        )


def _severity(red: list[str], kl: float) -> Severity:
    if red == [PROBABILITY]:
        return "info"
    return "critical" if kl > 3 * KL_HIGH else "warning"

"""Numbers in the wild: what others take for healthy and for broken, in one place for all checks.

verl calls a mean difference of probabilities below .005 normal and above .01 a problem; NeMo-RL flags a mean
exp|log ratio| above 1.05; prime-rl wants a KL per token below .015; Tinker sees 2e-4 in healthy dense models, .001 to
.002 in mixtures of experts, and .02 rising to .16 with a bug. The anchors page of the project names the sources.
"""

from __future__ import annotations

from holdfast.audit.judge.finding import Severity

PROBABILITY_NORMAL, PROBABILITY_HIGH = 0.005, 0.01
RATIO_HIGH = 1.05
KL_DENSE, KL_EXPERTS, KL_HIGH = 2e-4, 2e-3, 0.015
GROWTH = 1.5
"""A group of tokens with this multiple of the others' drift is worth a word."""
STRONG = 3.0


def growth_severity(factor: float, kl: float) -> Severity:
    """How bad drift is that grew by this factor to this KL per token: growth within the noise of numerics is no harm.

    Below KL_DENSE it is worth a word, above KL_HIGH and STRONG it ruins a run.
    """
    if kl < KL_DENSE:
        return "info"
    return "critical" if kl > KL_HIGH and factor > STRONG else "warning"

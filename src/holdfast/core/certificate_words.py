"""The sentences of a certificate: what it assumes, what it says, what is missing."""

from __future__ import annotations

import math

from holdfast.core.confidence import Limits
from holdfast.core.kl_comparison import KlComparison
from holdfast.core.units import Units

INDEPENDENT = "the current policy was not trained, chosen or stopped on these rollouts"


def compensated_assumptions(units: int, sampling: str) -> tuple[str, ...]:
    """What must be true for a certificate from exact KL, the most often broken first."""
    share = min(3 / units, 1)
    return (
        INDEPENDENT,
        sampling,
        f"no prompt or answer rarer than {share:.2g} (3/n) decides: such are not seen, and may cost up to {share:.2g} "
        "of the reward's range",
        "KL and log-probabilities are those of these two policies, on the same normalised support",
    )


def clipped_assumptions(sampling: str) -> tuple[str, ...]:
    """What must be true for a certificate from sampled log-probabilities alone."""
    return (
        INDEPENDENT,
        sampling,
        "log-probabilities of both policies are normalised, the rollout policy's those that it sampled with",
    )


def sampling(units: Units, grouped: bool) -> str:
    """What the limits take to be independent."""
    if units.one_prompt:
        return f"the {units.count} rollouts of its one prompt stand for that prompt alone"
    if grouped:
        return f"the {units.count} prompts were drawn independently"
    return (
        f"each of the {units.count} rollouts has a prompt of its own, drawn independently (no group_ids were given: "
        "where several rollouts share a prompt, the limits are too short)"
    )


def against(comparison: KlComparison) -> tuple[str, ...]:
    """What the sampled tokens say against exact KL, which no limit can repair."""
    if comparison.unseen:
        return (
            f"rollouts that show where the policies differ: at least {comparison.unseen:.3g} of the "
            f"{comparison.kl:.3g} nats of KL per rollout sit on tokens missing from them (about the current policy's "
            f"probability of writing such tokens, where the rollout policy hardly ever does)",
        )
    if comparison.contradicted:
        return (
            f"KL of these two policies: it averages {comparison.kl:.3g} nats per rollout where the sampled "
            f"log-probabilities show {comparison.k3:.3g}, at least {-comparison.difference.upper:.3g} more",
        )
    return ()


def few_units(units: int, least: int) -> str:
    """Too few prompts for the bootstrap."""
    return f"prompts: {units} independent ones were given, limits from the bootstrap need at least {least}"


def missing(gain: Limits, evidence: Limits, units: int, needed: int | None) -> tuple[str, ...]:
    """What stands between these rollouts and a certificate; empty where the lower limit is above 0.

    `needed` is the number of prompts that would do, where it is known better than from the width of the limits.
    """
    if evidence.lower > 0:
        return ()
    if gain.estimate <= 0:
        return (f"a gain: the surrogate is {gain.estimate:.3g}, so nothing says that the update helps",)
    if evidence.estimate <= 0:
        price = gain.estimate - evidence.estimate
        return (
            f"smaller drift: it may cost {price:.3g} where the gain is {gain.estimate:.3g}; an update more than "
            f"{price / gain.estimate:.2g} times smaller would do (the gain shrinks like it, the cost like its square)",
        )
    if needed is None:
        times = ((evidence.estimate - evidence.lower) / evidence.estimate) ** 2
        needed = math.ceil(units * times) if math.isfinite(times) else None
    if needed is None:
        return ("more samples: too few rollouts differ for any limit",)
    return (f"more samples: about {needed} independent prompts, {units} were given",)


def verdict(level: float, lower: float, lacking: tuple[str, ...], assumptions: tuple[str, ...]) -> str:
    """The assumptions, then what they give."""
    if lacking:
        return f"Improvement not certified at {level:.4g}. Missing: {'; '.join(lacking)}."
    return (
        f"Provided that {'; that '.join(assumptions)}: improvement certified at {level:.4g}. The expected reward rises "
        f"by at least {lower:.3g} against the policy that sampled these rollouts."
    )

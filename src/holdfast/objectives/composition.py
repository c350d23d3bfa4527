"""What the parts of an objective do to each other: corrections made twice, and how to let an idle part act."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.errors import ConfigError
from holdfast.objectives.parts.gates import Gate, One
from holdfast.objectives.parts.part import Part
from holdfast.objectives.parts.weights import ImportanceWeight, Weight


def refuse_double_corrections(name: str, gate: Gate, denominator: str, weights: Sequence[Weight]) -> None:
    """Raise ConfigError where the engine's drift would be corrected twice, which no method means.

    Two importance weights multiply. A ratio θ/rollout already holds every weight old/rollout or θ/rollout; a gate that
    ignores the ratio (`one`) does not.
    """
    found = [weight for weight in weights if isinstance(weight, ImportanceWeight)]
    if len(found) > 1:
        raise ConfigError(
            f"{name!r} corrects the engine's drift twice: its weights {' and '.join(w.formula() for w in found)} "
            "multiply; keep one, and reject what lies outside a band with the mask 'ratio_band' instead"
        )
    if found and denominator == "rollout" and gate != One():
        keep = "keep denominator = 'old', or " if found[0].numerator == "old" else ""
        raise ConfigError(
            f"{name!r} corrects the engine's drift twice: its ratio θ/rollout already holds the weight "
            f"{found[0].formula()}; {keep}leave the weight out (weights = [])"
        )


def corrects(weights: Sequence[Weight]) -> bool:
    """Whether a weight corrects the engine's drift, so that a ratio to the rollout would correct it again."""
    return any(isinstance(weight, ImportanceWeight) for weight in weights)


def double_corrections(gate: Gate, denominator: str, weights: Sequence[Weight]) -> list[str]:
    """Sentences about what may be meant, and is counted twice all the same once several steps move θ from old."""
    if denominator != "old" or gate == One():
        return []
    return [
        f"the weight {weight.formula()} and the ratio θ/old both count θ/old: with several optimiser steps per rollout "
        "batch it is counted twice; use numerator = 'old', or the gate 'one' with carrier 'score'"
        for weight in weights
        if isinstance(weight, ImportanceWeight) and weight.numerator == "current"
    ]


def remedies(idle: Sequence[Part], weighted: bool) -> dict[str, str]:
    """Settings for `Objective.with_` that let idle parts act with a single optimiser step per rollout batch.

    A gate acts once the ratio is to the rollout policy, and so does a part that follows the ratio. Where a weight
    corrects the drift (`weighted`), that would be a second correction: the gate then needs several steps.
    """
    return dict(setting for part in idle if (setting := _remedy(part, weighted)) is not None)


def idle_note(idle: Sequence[Part], weighted: bool, several: str) -> str:
    """What cannot act with one optimiser step per rollout batch, and what would let it; "" where nothing is idle."""
    if not idle:
        return ""
    cures: dict[str, list[str]] = {}
    for part in idle:
        if (setting := _remedy(part, weighted)) is not None:
            cures.setdefault(f"{setting[0]} = {setting[1]!r}", []).append(part.kind())
    others = [f"for {' and '.join(kinds)} set {setting}" for setting, kinds in cures.items()]
    names = " and ".join(part.kind() for part in idle)
    return (
        f"with one optimiser step per rollout batch θ is old, and {names} cannot act (no gradient changes): "
        + ", or ".join([several, *others])
    )


def _remedy(part: Part, weighted: bool) -> tuple[str, str] | None:
    follows = isinstance(part, Gate) or getattr(part, "policy", None) == "denominator"
    if follows and not weighted:
        return "denominator", "rollout"
    return None if isinstance(part, Gate) else (f"{part.kind()}.policy", "rollout")

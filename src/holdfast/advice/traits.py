"""What an objective does, in the words of the lines: where its ratio is taken, how it is gated, what is masked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from holdfast.objectives.objective import Objective
from holdfast.objectives.parts.covariance import ClipCov
from holdfast.objectives.parts.gates import HardGate, SoftGate
from holdfast.objectives.parts.penalties import EntropyBonus, KlCov
from holdfast.objectives.parts.weights import ImportanceWeight

TRAITS = (
    "ratio to the rollout policy",
    "clip",
    "sequence ratio",
    "soft sequence gate",
    "drift mask",
    "engine weights",
    "entropy bonus",
    "KL-Cov",
    "Clip-Cov",
    "entropy control",
    "brake",
)
"""All of them. A drift mask looks at the rollout policy; the brake is of the run, not of its objective."""


def traits_of(objective: Objective, *, brake: bool = False) -> frozenset[str]:
    """Those of an objective."""
    sequence = objective.pool.over != "token"
    found = {
        "ratio to the rollout policy": objective.denominator == "rollout",
        "clip": isinstance(objective.gate, HardGate),
        "sequence ratio": sequence,
        "soft sequence gate": sequence and isinstance(objective.gate, SoftGate),
        "drift mask": any(getattr(mask, "policy", "") == "rollout" for mask in objective.masks),
        "engine weights": any(isinstance(weight, ImportanceWeight) for weight in objective.weights),
        "entropy bonus": any(isinstance(penalty, EntropyBonus) for penalty in objective.penalties),
        "KL-Cov": any(isinstance(penalty, KlCov) for penalty in objective.penalties),
        "Clip-Cov": any(isinstance(mask, ClipCov) for mask in objective.masks),
        "brake": brake,
    }
    found["entropy control"] = found["entropy bonus"] or found["KL-Cov"] or found["Clip-Cov"]
    return frozenset(name for name, there in found.items() if there)


def key_of(objective: Objective) -> str:
    """Equal for two objectives exactly when they are the same, whatever their rows are called."""
    values = objective.to_dict()
    del values["name"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def hold(asked: Iterable[str], traits: frozenset[str]) -> bool:
    """Whether all of `asked` hold, "!" before those that must be absent."""
    return all((name.removeprefix("!") in traits) != name.startswith("!") for name in asked)

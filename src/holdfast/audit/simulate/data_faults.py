"""Faults of the log itself: numbers that are not what they are said to be."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from holdfast.audit.simulate.fault import Fault
from holdfast.types import Rollout


def shift(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """The engine's log-probabilities one place late, in this share of the sequences."""

    def late(rollout: Rollout) -> Rollout:
        values = rollout.rollout_logprobs or ()
        return dataclasses.replace(rollout, rollout_logprobs=(0.0, *values[:-1]))

    return [late(r) if rng.random() < strength else r for r in rollouts]


DATA_FAULTS = (
    Fault(
        "shifted_by_one",
        "shifted_by_one",
        "engine log-probabilities one token late in {strength:.0%} of the sequences",
        (0.1, 0.3, 1.0),
        shift,
    ),
)

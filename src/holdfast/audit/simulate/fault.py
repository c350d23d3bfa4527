"""What a planted fault is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from holdfast.types import Rollout


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong in real logs, planted in a healthy run at a chosen strength.

    `check` is the name of the check that must find it; `describe` says what was done, with `{strength}` in it.
    `apply(rollouts, strength, rng)` returns the faulty run. `strengths` go from hard to find to plain. `run` are
    arguments of `clean_run` without which the fault makes no sense (several turns, some age).
    """

    name: str
    check: str
    describe: str
    strengths: tuple[float, ...]
    apply: Callable[[Sequence[Rollout], float, np.random.Generator], list[Rollout]]
    run: Mapping[str, Any] = field(default_factory=dict)

"""The learning rate of each step: a function of the step's number alone, so that a resumed run continues it exactly."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from holdfast.train.settings.config import OptimizerConfig


def learning_rate_at(settings: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of step 1 ≤ `step` ≤ `steps`, with w warm-up steps:

        warm-up     learning_rate · step / (w + 1)                      for step ≤ w + 1
        afterwards  learning_rate · (m + (1 − m)·f(p)),                 p = (step − 1 − w) / (steps − w)
                    f = 1 (constant), 1 − p (linear), (1 + cos πp)/2 (cosine), m = min_ratio (constant: 1)

    So the first step after the warm-up has the whole rate, and the step after the last would have m times it: the last
    step still learns where m = 0. transformers' schedules have the same f and p, but begin their warm-up at 0.
    """
    warmup = settings.warmup_steps
    if step <= warmup + 1 or settings.schedule == "constant":
        return settings.learning_rate * min(1.0, step / (warmup + 1))
    done = min(1.0, (step - 1 - warmup) / max(1, steps - warmup))
    left = 1.0 - done if settings.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return settings.learning_rate * (settings.min_ratio + (1.0 - settings.min_ratio) * left)


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Give every group of an optimiser this rate; torchao keeps it in a tensor, which stays the same one."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate

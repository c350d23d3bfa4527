"""The course of a run: numbers by step under one vocabulary, wherever they come from, a scalar log or a token log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

Column: TypeAlias = np.ndarray

VOCABULARY: Mapping[str, str] = {
    "reward": "mean reward of the step's responses, before any KL penalty where the log has both",
    "reward_std": "standard deviation of the rewards within the step",
    "equal_groups": "share of groups whose rewards are all the same",
    "entropy": "nats per token",
    "kl_ref": "KL to the reference policy, nats per token",
    "kl_old": "KL to the policy before the update, nats per token",
    "mismatch_kl": "KL of engine and trainer, nats per token",
    "mismatch_abs_log": "mean |log ratio| of engine and trainer, nats",
    "mismatch_probs": "mean |difference of probabilities| of engine and trainer",
    "mismatch_ratio": "mean ratio of trainer and engine; 1 where they agree",
    "clip_share": "share of tokens that the clip or mask takes out of the gradient",
    "length": "mean length of the responses, tokens",
    "length_max": "longest response, tokens",
    "truncated": "share of responses cut at the length limit",
    "gradient_norm": "norm of the gradient before clipping",
    "learning_rate": "of the optimiser",
    "loss": "as logged",
}
"""Every number that the audit knows by name, and what it is."""
MISMATCH = ("mismatch_kl", "mismatch_abs_log", "mismatch_probs", "mismatch_ratio")


@dataclass(frozen=True)
class Series:
    """One number by step.

    `steps` [N] rise strictly; `values` [N] may hold NaN and infinities, as logged; `errors` [N] are the standard errors
    of the values where they are known, 0 elsewhere. `named` is the name in the log. `past` are values that are not
    compared, but tell how much these vary; `memory` is the correlation of neighbouring steps that is allowed for, at
    most, where few steps do not show it, for whoever looks at the same run again and again.
    """

    steps: Column
    values: Column
    errors: Column | None = None
    named: str = ""
    past: Column | None = None
    memory: float = 0.0

    def __len__(self) -> int:
        return len(self.steps)

    def finite(self) -> Series:
        """Without the steps whose value is no finite number."""
        known = np.isfinite(self.values)
        if known.all():
            return self
        errors = None if self.errors is None else self.errors[known]
        return replace(self, steps=self.steps[known], values=self.values[known], errors=errors)


@dataclass(frozen=True)
class Course:
    """Series by name of the vocabulary; `framework` wrote the log, where that is known."""

    series: Mapping[str, Series] = field(default_factory=dict)
    framework: str | None = None

    def finite(self, name: str) -> Series | None:
        """A series without what is no number; None where there is none."""
        found = self.series.get(name)
        return found.finite() if found is not None and np.isfinite(found.values).any() else None

    @property
    def steps(self) -> set[int]:
        """All steps that any series has."""
        return {int(step) for series in self.series.values() for step in series.steps}

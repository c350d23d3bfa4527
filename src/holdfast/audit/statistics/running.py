"""Estimators of the drift over all tokens: overall, by position, by step; intervals by bootstrap over prompts."""

from __future__ import annotations

from dataclasses import dataclass, field

from holdfast.audit.binned import Binned, Sizes
from holdfast.audit.view import View

DEPTHS = 24


@dataclass
class Statistics:
    """k1, k2, k3 and |log-ratio| over measured tokens; all of them are estimates of a mean over rollouts."""

    k1: Binned = field(default_factory=lambda: Binned(1))
    k2: Binned = field(default_factory=lambda: Binned(1))
    k3: Binned = field(default_factory=lambda: Binned(1))
    sizes: Sizes = field(default_factory=Sizes)
    size_by_depth: Binned = field(default_factory=lambda: Binned(DEPTHS))

    def update(self, view: View) -> None:
        """Take in one chunk."""
        if not view.has("rollout_logprobs", "trainer_logprobs"):
            return
        self.k1.add_sequences(view, 0, -view.log_ratio)
        self.k2.add_sequences(view, 0, view.log_ratio**2 / 2)
        self.k3.add_sequences(view, 0, view.k3)
        self.sizes.add(view.size[view.measured])
        self.size_by_depth.add_tokens(view, view.depth, view.size)

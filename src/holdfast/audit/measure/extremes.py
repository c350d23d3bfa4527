"""Tokens at which two policies are far apart, and whom they hit: counts and sums of each sequence."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from holdfast.audit.measure.tokens import TokenView
from holdfast.audit.read.columns import Column

EXTREME: Mapping[str, float] = {"2": math.log(2), "5": math.log(5), "20": math.log(20)}
"""Factors by which a token's two probabilities differ, and their logarithms in nats."""
CONFIDENT, DISAGREES = math.log(0.5), 2.0
"""A token that the engine gave one half or more, and the trainer scores this many nats lower."""
RATES = (*(f"beyond {factor}" for factor in EXTREME), "confident disagreement")
SIGNS = ("positive", "negative")


def extremes_of(view: TokenView) -> Column:
    """[N, len(RATES) + 1] extreme tokens of each sequence, and its measured ones."""
    far = np.flatnonzero(view.size > EXTREME["2"])
    size, sequence = view.size[far], view.sequence[far]
    confident = (view.tokens("rollout_logprobs")[far] >= CONFIDENT) & (view.log_ratio[far] < -DISAGREES)
    found = [*(size > limit for limit in EXTREME.values()), confident]
    counts = [np.bincount(sequence[where], minlength=len(view.chunk)) for where in found]
    return np.column_stack([*counts, view.sequence_measured])


def pulls_of(view: TokenView) -> Column:
    """[N, 6]: Σ -(w - 1) A and tokens with A > 0, the same with A < 0, and Σ |A| of both."""
    advantages = view.where(view.measured, view.tokens("advantages"))
    pull = -view.weight_change * advantages
    columns, sizes = [], []
    for sign in (advantages > 0, advantages < 0):
        columns += [view.sum(np.where(sign, pull, 0)), view.sum(sign)]
        sizes.append(view.sum(np.where(sign, np.abs(advantages), np.float32(0))))
    return np.column_stack([*columns, *sizes])

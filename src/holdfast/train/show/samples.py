"""A few rollouts of a step for the trackers: the lowest and the highest rewards, and some between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from holdfast.errors import visible
from holdfast.train.sampling.data import Rollouts
from holdfast.train.update import Updated

MOST_ROWS = 6
MOST_CHARACTERS = 2000
"""Of a prompt or response; of a longer one its two ends are shown."""


@dataclass(frozen=True)
class Samples:
    """A table: one row for each rollout."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def samples_of(rollouts: Rollouts, updated: Updated, most: int = MOST_ROWS) -> Samples:
    """Of the step's rollouts in order of their reward, `most` evenly spaced ones, both ends among them.

    `kept` is the share of a response's own tokens that the trust region left in the gradient, the last column the
    largest |log trainer − log rollout| in nats.
    """
    rewards, mask = rollouts.rewards, rollouts.sequences.response_mask
    order = rewards.argsort(stable=True).tolist()
    count = min(most, len(order))
    chosen = [order[round(k * (len(order) - 1) / max(1, count - 1))] for k in range(count)]
    gaps = (updated.stats.logprobs - rollouts.rollout_logprobs).abs() * mask
    kept = (updated.trust_mask & mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    columns = ("prompt", "response", "reward", "tokens", "kept", "worst |log ratio|")
    rows = tuple(
        (
            _ends(rollouts.prompts.problems[row].prompt),
            _ends(rollouts.texts[row]),
            round(float(rewards[row]), 4),
            int(mask[row].sum()),
            round(float(kept[row]), 3),
            round(float(gaps[row].max()), 4),
        )
        for row in chosen
    )
    return Samples(columns, rows)


def _ends(text: str) -> str:
    text = visible(text, keep="\n\t")
    half = MOST_CHARACTERS // 2
    return text if len(text) <= MOST_CHARACTERS else f"{text[:half]} … {text[-half:]}"

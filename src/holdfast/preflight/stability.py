"""Whether the engine gives the same response twice, and whether it depends on what else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from holdfast.preflight.bench import Bench
from holdfast.preflight.causes import Cause
from holdfast.preflight.gap import change
from holdfast.preflight.observe import Observation, sample
from holdfast.rollout.engine import Completion

ALONE = 8
"""Responses that are sampled again, and one at a time."""


@dataclass(frozen=True)
class Repeat:
    """The same requests twice: `same` of `responses` are equal token by token.

    `largest` is the largest |Δ log p| of one token behind equal tokens, in nats; `first` the earliest token, from 0, at
    which two responses part, None where none does.
    """

    name: str
    responses: int
    same: int
    largest: float
    first: int | None

    @property
    def exact(self) -> bool:
        """Whether nothing differs, to the last bit."""
        return self.same == self.responses and self.largest == 0


def compare(name: str, ours: Sequence[Completion], theirs: Sequence[Completion]) -> Repeat:
    """Responses to the same requests; only tokens behind equal tokens are compared."""
    same, largest, parts = 0, 0.0, []
    for a, b in zip(ours, theirs, strict=True):
        alike = next((i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if x != y), None)
        if alike is None and len(a.token_ids) != len(b.token_ids):
            alike = min(len(a.token_ids), len(b.token_ids))
        count = len(a.token_ids) if alike is None else alike
        same += alike is None
        parts += [] if alike is None else [alike]
        if count:
            largest = max(largest, float((a.logprobs[:count] - b.logprobs[:count]).abs().max()))
    return Repeat(name, len(ours), same, largest, min(parts, default=None))


@dataclass(frozen=True)
class Stability:
    """The same requests again, and one at a time; `batch` is what that makes of the gap."""

    again: Repeat
    alone: Repeat
    batch: Cause


def stability(bench: Bench, base: Observation) -> Stability:
    """The same responses in one batch, once more, and one at a time, with their own seeds each time."""
    few = base.asked.first(ALONE)
    together = bench.observe("sampling in one batch", few)
    again = sample(bench.running(), few)
    alone = bench.observe("sampling one at a time", replace(few, rows=1))
    said = f"{len(few.prompts)} responses one at a time in place of {min(few.rows, len(few.prompts))} at a time"
    return Stability(
        again=compare("the same call twice", together.completions, again),
        alone=compare("in a batch and alone", together.completions, alone.completions),
        batch=Cause("batch size", "measured", said, change(together.view, alone.view)),
    )

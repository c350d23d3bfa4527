"""What a check is: it sees every chunk once, keeps bounded memory, and says at any time what it has found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from holdfast.audit.judge.finding import Finding
from holdfast.audit.measure.tokens import Unit
from holdfast.audit.measure.view import View


@dataclass
class Facts:
    """What is known of the whole run so far, whatever the check: sizes, columns, and how precise the log is."""

    sequences: int = 0
    tokens: int = 0
    own_tokens: int = 0
    measured_tokens: int = 0
    columns: set[str] = field(default_factory=set)
    steps: set[int] = field(default_factory=set)
    longest: int = 0
    logprob_resolution: float = 0.0
    unit: Unit = "prompt"
    """What the intervals of this run resample."""

    def merge(self, other: Facts) -> None:
        """Add what is known of another part of the run."""
        for name in ("sequences", "tokens", "own_tokens", "measured_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.columns |= other.columns
        self.steps |= other.steps
        self.longest = max(self.longest, other.longest)
        self.logprob_resolution = max(self.logprob_resolution, other.logprob_resolution)


@runtime_checkable
class Check(Protocol):
    """One thing that can be wrong.

    `needs` are columns without which the check is skipped, which the report says. `update` must not keep the view.
    `findings` may be called again and again while a run is written. Checks of the same kind that looked at different
    chunks add up (`add_up`: attribute by attribute, or by a method `merge`) to one that looked at all, in any order.
    `where` of a finding has sequences by their numbers in the log (`View.numbers_in_log`).
    """

    name: str
    asks: str
    """The question it answers, for the page: "Do log-probabilities belong to the tokens beside them?"."""
    needs: frozenset[str]

    def update(self, view: View) -> None:
        """Take in one chunk that has all needed columns."""
        ...

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """What was seen so far; empty for a healthy run."""
        ...

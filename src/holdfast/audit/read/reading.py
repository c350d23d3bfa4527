"""What a loader and the audit share while a file is read: progress, and the records that could not be used."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.audit.read.codec import Codec

MOST_EXAMPLES = 20


@dataclass(frozen=True)
class BadRecord:
    """A record that was left out: where, and why in words that name the field and its value."""

    path: str
    record: int
    reason: str


def natural(path: Path | str) -> list[int | str]:
    """A key that orders paths with step_2 before step_10."""
    return [int(piece) if place % 2 else piece for place, piece in enumerate(re.split(r"(\d+)", str(path)))]


def _tell_nobody(done: int) -> None:
    pass


@dataclass
class Reading:
    """Options and counters of one audit's input; loaders call `reject` and `advance`, nothing else.

    `likeliest`: read the engine's likeliest tokens too, where a log has them with ids; a model can make bounds of them.
    `rejected` counts by kind of reason (a short phrase without numbers); `examples` holds the first ones in full.
    `columns` are the user's own names, ours to theirs, which go before all known ones. `codec` is the vocabulary, where
    a tokenizer was given.
    """

    allow_pickle: bool = False
    likeliest: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    codec: Codec | None = None
    on_progress: Callable[[int], None] = _tell_nobody
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[BadRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What the source cannot tell or tells only roughly, in words: shown in the report."""
    texts: Counter[str] = field(default_factory=Counter)
    """Counts of rows whose token ids were made from their text."""
    logprob_resolution: float = 0.0
    """Rounding of logged log-probabilities, in nats: no drift below it can be seen."""
    bytes_read: int = 0

    def reject(self, path: Path | str, record: int, kind: str, detail: str = "") -> None:
        """Leave a record out and remember why."""
        self.rejected[kind] += 1
        if len(self.examples) < MOST_EXAMPLES:
            self.examples.append(BadRecord(str(path), record, f"{kind}: {detail}" if detail else kind))

    def merge(self, other: Reading) -> None:
        """Add what another part of the log told; its examples come after."""
        self.rejected.update(other.rejected)
        self.examples = [*self.examples, *other.examples]
        for text in other.notes:
            self.note(text)
        self.texts.update(other.texts)
        self.logprob_resolution = max(self.logprob_resolution, other.logprob_resolution)
        self.bytes_read += other.bytes_read

    def advance(self, size: int) -> None:
        """Say that so many more bytes of input are done."""
        self.bytes_read += size
        self.on_progress(self.bytes_read)

    def note(self, text: str) -> None:
        """Remember a sentence once."""
        if text not in self.notes:
            self.notes.append(text)

    def withdraw(self, text: str) -> None:
        """Forget a note that has ceased to hold."""
        if text in self.notes:
            self.notes.remove(text)

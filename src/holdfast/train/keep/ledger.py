"""The ledger of a run's sequences: what was started, finished and trained on, line by line as it happens.

    {"round": 7, "version": 4, "started": [96, 127], "finished": [64, 65, ...]}
    {"died": "ended with code -9", "redo": [8, 9]}
    {"step": 8, "trained": [64, 95]}

Ranges name the first and the last sequence id.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.errors import DataError


class Ledger:
    """Appends lines, and takes back those that a resumed run writes again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **entry: Any) -> None:
        """One line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All complete lines; one that was cut off by a kill is left out."""
        if not self.path.is_file():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").split("\n")[:-1] if line]

    def rewind(self, step: int, number: int) -> None:
        """Keep what happened up to this step and this round."""
        kept = [e for e in self.read() if e.get("step", step) <= step and e.get("round", number) <= number]
        self.path.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")


@dataclass(frozen=True)
class Account:
    """How many sequences got how far; `restarts` counts engines that died and were replaced."""

    started: int
    finished: int
    trained: int
    restarts: int


def audit(entries: Iterable[Mapping[str, Any]]) -> Account:
    """Add the ledger up.

    Raises:
        DataError: a sequence was started, finished or trained on twice, or later without what comes before.
    """
    started: Counter[int] = Counter()
    finished: Counter[int] = Counter()
    trained: Counter[int] = Counter()
    restarts = 0
    for entry in entries:
        restarts += "died" in entry
        for seen, before, ids in (
            (started, None, _span(entry.get("started"))),
            (finished, started, entry.get("finished", ())),
            (trained, finished, _span(entry.get("trained"))),
        ):
            seen.update(ids)
            missing = [] if before is None else [i for i in ids if i not in before]
            if missing:
                raise DataError(f"ledger: sequence {missing[0]} got ahead of itself: {json.dumps(dict(entry))[:200]}")
    for name, seen in (("started", started), ("finished", finished), ("trained on", trained)):
        twice = [i for i, count in seen.items() if count > 1]
        if twice:
            raise DataError(f"ledger: sequence {twice[0]} was {name} {seen[twice[0]]} times")
    return Account(len(started), len(finished), len(trained), restarts)


def _span(ends: Any) -> range:
    return range(0) if ends is None else range(ends[0], ends[1] + 1)

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
from holdfast.train.keep.files import append_line, read_lines, write_text


class Ledger:
    """Appends lines, and takes back those that a resumed run writes again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **entry: Any) -> None:
        """One line."""
        append_line(self.path, entry)

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; what a kill cut off is left out."""
        return read_lines(self.path, _is_entry)[0]

    def rewind(self, step: int, number: int, restarts: int) -> None:
        """Keep what happened up to this step, this round and so many deaths; a line cut off by a kill goes."""
        kept, deaths = [], 0
        for entry in self.read():
            deaths += "died" in entry
            passed = entry.get("step", step) > step or entry.get("round", number) > number
            if not passed and ("died" not in entry or deaths <= restarts):
                kept.append(entry)
        write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))


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


def _is_entry(entry: dict[str, Any]) -> bool:
    return all(type(entry.get(name, 0)) is int for name in ("step", "round"))


def _span(ends: Any) -> range:
    return range(0) if ends is None else range(ends[0], ends[1] + 1)

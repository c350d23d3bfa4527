"""What a run wrote of its steps: metrics.jsonl, read so that a torn line or a missing key never stops a report."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard


@dataclass(frozen=True)
class Metrics:
    """One mapping per step in step order, and how many lines could not be read."""

    rows: tuple[Mapping[str, Any], ...]
    unreadable: int = 0

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of a number, where it was measured."""
        found = [(step_of(row), float(v)) for row in self.rows if is_number(v := row.get(key))]
        return [s for s, _ in found], [v for _, v in found]

    def has(self, *keys: str) -> bool:
        """Whether any of these numbers was measured at any step."""
        return any(is_number(row.get(key)) for row in self.rows for key in keys)

    def first(self, key: str) -> float | None:
        """The value at the first step that measured it."""
        return next(iter(self.series(key)[1]), None)

    def last(self, key: str) -> float | None:
        """The value at the last step that measured it."""
        return next(reversed(self.series(key)[1]), None)

    def mean(self, key: str) -> float | None:
        """The mean over the steps that measured it."""
        values = self.series(key)[1]
        return sum(values) / len(values) if values else None

    def highest(self, key: str) -> tuple[int, float] | None:
        """Step and value of the largest value."""
        return max(zip(*self.series(key), strict=True), key=lambda pair: pair[1], default=None)

    def lists(self, key: str) -> list[tuple[int, list[float | None]]]:
        """Steps and values of a list of numbers; entries that are no finite number are None."""
        return [
            (step_of(row), [float(v) if is_number(v) else None for v in row[key]])
            for row in self.rows
            if isinstance(row.get(key), list)
        ]

    def mappings(self, key: str) -> list[tuple[int, Mapping[str, Any]]]:
        """Steps and values of a mapping."""
        return [(step_of(row), row[key]) for row in self.rows if isinstance(row.get(key), dict)]

    def warnings(self) -> list[tuple[str, list[int]]]:
        """Each kind of warning once, as it was said last, with the steps it was given at, most frequent first."""
        steps: dict[str, list[int]] = {}
        last: dict[str, str] = {}
        for row in self.rows:
            given = row.get("warnings")
            for text in map(str, given) if isinstance(given, list) else ():
                steps.setdefault(kind_of_warning(text), []).append(step_of(row))
                last[kind_of_warning(text)] = text
        order = Counter({kind: len(at) for kind, at in steps.items()})
        return [(last[kind], steps[kind]) for kind, _ in order.most_common()]


def kind_of_warning(text: str) -> str:
    """A warning without its numbers: what is said at many steps differs in them alone.

    >>> kind_of_warning("62% of 48 responses were cut off") == kind_of_warning("7.5% of 9 responses were cut off")
    True
    """
    return re.sub(r"[-+]?\d[\d,]*\.?\d*(e[-+]?\d+)?", "#", text)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a finite number (True and False are not)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def step_of(row: Mapping[str, Any]) -> int:
    """The step of a row that `read_metrics` kept."""
    return int(row["step"])


def read_metrics(path: Path) -> Metrics:
    """Read a metrics.jsonl; a missing file is no steps, a step written twice (after a resume) counts as last written.

    Lines that are no JSON object are counted, not raised: a killed run may end in the middle of one. A row without a
    step takes its line's number, from 0.
    """
    if not path.is_file():
        return Metrics(())
    rows: dict[int, Mapping[str, Any]] = {}
    unreadable = 0
    for index, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            unreadable += 1
            continue
        step = row.get("step")
        step = int(step) if is_number(step) else index
        rows[step] = row | {"step": step}
    return Metrics(tuple(rows[step] for step in sorted(rows)), unreadable)


def binned(values: Sequence[tuple[float, float]], bins: int, end: float) -> list[list[float]]:
    """Values gathered in equal bins of [0, end] by their first entry."""
    gathered: list[list[float]] = [[] for _ in range(bins)]
    for at, value in values:
        gathered[min(bins - 1, max(0, int(at / end * bins)))].append(value)
    return gathered

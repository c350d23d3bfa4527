"""From a path to the course of one run: finds the logs, joins what a run wrote in several, keeps two runs apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from holdfast.audit.course import VOCABULARY, Course, Series
from holdfast.audit.read.raw.compressed import head_of, plain_name
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.scalars import console, records, rows
from holdfast.audit.read.scalars.names import OWN_STEPS, STEPS, TABLES, framework_of, known_names, looked_for, taken
from holdfast.audit.read.scalars.rows import Row
from holdfast.errors import DataError

HEAD = 1 << 16
LARGEST_STEP = 1e15
SAME = 1e-6
"""Relative difference up to which two files say the same of a step."""
FEWEST_OF_LOG = 3
"""Steps of a log beside which a file of one step is a summary."""
_CONSOLES = (".log", ".txt", ".out", ".err")
Reader = Callable[[Path, Reading], Iterator[Row]]


@dataclass(frozen=True)
class ScalarLog:
    """What a log of numbers holds: the course, its files, and the names that it was not read under."""

    course: Course
    files: tuple[Path, ...]
    unknown: tuple[str, ...] = ()


@dataclass
class _Points:
    """Steps and values of each name of one file, in the order in which they were written."""

    path: Path
    steps: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def names(self) -> set[str]:
        return set(self.values)

    @property
    def longest(self) -> int:
        """Steps of the name that has most."""
        return max((len(steps) for steps in self.steps.values()), default=0)


def reader_of(path: Path, *, search: bool = True) -> Reader | None:
    """What reads a file's numbers, None where it holds none.

    Events and W&B's files are told by their first bytes, JSON and CSV by a step or a known name, what trainers print by
    any such line, for which a file is searched if `search` says so.
    """
    head = head_of(path, HEAD)
    known = {name for framework in TABLES for name in known_names(framework)}
    if head.startswith(records.WANDB):
        return records.wandb_rows
    if records.is_events(head):
        return records.event_rows
    name = plain_name(path).lower()
    if name.endswith(".csv"):
        return rows.csv_rows if rows.is_table(head, known) else None
    if search and name.endswith(_CONSOLES) and console.is_console(path):
        return console.console_rows
    quoted = any(f'"{each}"'.encode() in head for each in (*known, *STEPS, "log_history"))
    return rows.json_rows if head.lstrip()[:1] in (b"{", b"[") and quoted and not _holds_tokens(head) else None


def _holds_tokens(head: bytes) -> bool:
    return b'token_ids"' in head or b'"messages"' in head or b'"choices"' in head


def find_logs(path: Path, *, search: bool = True, without: Collection[Path] = ()) -> list[Path]:
    """The files under a path that hold numbers by step, the older first; `without` those that hold rollouts, say."""
    candidates = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    own = [p for p in candidates if "audit-" not in p.parent.name and p not in without]
    found = [p for p in own if reader_of(p, search=search) is not None]
    return sorted(found, key=lambda p: (p.stat().st_mtime_ns, str(p)))


def read_scalars(
    path: Path, reading: Reading, *, search: bool = True, without: Collection[Path] = ()
) -> ScalarLog | None:
    """The course of the run that a file or folder logged; None where there is no log of numbers.

    What an interrupted run wrote again after it was resumed replaces what it wrote before; several files are joined if
    they hold different numbers, agree, or go on where another ends. Files without a known name are left aside where
    others have one, and so are summaries: files of one step beside those of many. `without` are not looked at.

    Raises DataError where the logs are of several runs, have no number under a known name, or have no row.
    """
    logs = find_logs(path, search=search, without=without)
    if not logs:
        return None
    files = [points for log in logs if (points := _points(log, reading)).names]
    if not files:
        raise DataError(f"{path}: no numbers in {', '.join(log.name for log in logs[:3])}: nothing was logged yet")
    files = _telling(files, reading)
    merged = _joined(path, files, reading)
    framework = framework_of(merged.names)
    own = {ours: name for ours, name in reading.columns.items() if ours in VOCABULARY}
    names = (taken(framework, merged.names) if framework else {}) | {
        ours: (name, False) for ours, name in own.items() if name in merged.names
    }
    if not names:
        there = ", ".join(sorted(merged.names)[:30])
        raise DataError(
            f"{path} is a log of numbers, but none has a known name. It has: {there}. Looked for {looked_for()}. "
            "Name yours: --map reward=NAME, --map entropy=NAME, ..."
        )
    series = {ours: _series(merged, name, minus) for ours, (name, minus) in names.items()}
    unknown = tuple(sorted(merged.names - {name for name, _ in names.values()}))
    return ScalarLog(Course(series, framework), tuple(points.path for points in files), unknown)


def _telling(files: Sequence[_Points], reading: Reading) -> Sequence[_Points]:
    """The files that have a known name, without summaries of the others; all where none has one."""
    own = set(reading.columns.values())
    known = [points for points in files if points.names & own or framework_of(points.names)] or files
    long = [points for points in known if points.longest >= FEWEST_OF_LOG]
    return [points for points in known if points.longest > 1] if long else known


def _series(points: _Points, name: str, minus: bool) -> Series:
    steps, values = np.array(points.steps[name]), np.array(points.values[name])
    order = np.argsort(steps, kind="stable")
    return Series(steps[order], 1 - values[order] if minus else values[order], named=name)


def _points(path: Path, reading: Reading) -> _Points:
    """All numbers of a file; of a step that a name has twice, what was written last."""
    reader = reader_of(path)
    points, repeated = _Points(path), set()
    ordered = 0
    try:
        for number, row in enumerate(reader(path, reading) if reader else ()):
            step = _step(row)
            if step is None:
                ordered += 1
            for name, value in row.items():
                if name in STEPS or name in OWN_STEPS.values():
                    continue
                own = row.get(OWN_STEPS.get(name.split("/")[0], ""), step)
                at = number + 1 if own is None or not abs(own) < LARGEST_STEP else int(own)
                steps, values = points.steps[name], points.values[name]
                while steps and steps[-1] >= at:
                    repeated.add(steps.pop())
                    values.pop()
                steps.append(at)
                values.append(value)
    except (DataError, OSError) as error:
        reading.reject(path, 0, "unreadable file", str(error))
    if repeated:
        reading.note(
            f"{path.name}: steps {min(repeated)} to {max(repeated)} were logged more than once, as a resumed run does: "
            "what was written last counts"
        )
    if ordered:
        reading.note(
            f"{path.name}: {ordered:,} rows name no step (looked for {', '.join(STEPS)}): their order is taken for it"
        )
    return points


def _step(row: Row) -> float | None:
    return next((row[name] for name in STEPS if name in row and abs(row[name]) < LARGEST_STEP), None)


def _joined(path: Path, files: Sequence[_Points], reading: Reading) -> _Points:
    """One run's numbers from several files."""
    merged = _Points(path)
    apart: list[_Points] = []
    for points in sorted(files, key=lambda p: min(steps[0] for steps in p.steps.values())):
        if _conflict(merged, points):
            apart.append(points)
            continue
        for name in points.names:
            if name in merged.values:
                _extend(merged, points, name, reading)
            else:
                merged.steps[name], merged.values[name] = list(points.steps[name]), list(points.values[name])
    if apart:
        names = [str(p.path) for p in (files[0], *apart)]
        raise DataError(
            f"{path} holds logs of {len(set(names))} runs or more, whose numbers differ at the same steps: "
            f"{', '.join(dict.fromkeys(names))}. Audit one of them"
        )
    runs = {name.partition(" - ")[0] for name in merged.names if " - " in name}
    if len(runs) > 1:
        raise DataError(
            f"{path} has columns of {len(runs)} runs ({', '.join(sorted(runs)[:5])}): export one run, or name its "
            "columns: --map 'reward=RUN - NAME'"
        )
    return merged


def _extend(merged: _Points, points: _Points, name: str, reading: Reading) -> None:
    """Put a file's values behind what is known of the steps before its first one."""
    steps, values = merged.steps[name], merged.values[name]
    start, last = points.steps[name][0], steps[-1]
    if points.steps[name][-1] <= last and not _differ(merged, points, name):
        return
    if start <= last:
        reading.note(
            f"{points.path.name} goes on at step {start}, before the other log's end at {last}: from there on it counts"
        )
    while steps and steps[-1] >= start:
        steps.pop()
        values.pop()
    steps += points.steps[name]
    values += points.values[name]


def _conflict(merged: _Points, points: _Points) -> bool:
    """Whether a file is another run's: it differs at shared steps, and does not go on where the other ended."""
    for name in points.names & merged.names:
        if _differ(merged, points, name):
            first, last = merged.steps[name][0], merged.steps[name][-1]
            start, end = points.steps[name][0], points.steps[name][-1]
            later = start > first + max(1, (last - first) // 20) and end > last
            if not later:
                return True
    return False


def _differ(merged: _Points, points: _Points, name: str) -> bool:
    """Whether two files say different things of more than a tenth of the steps that both have."""
    known: Mapping[int, float] = dict(zip(merged.steps[name], merged.values[name], strict=True))
    both = [(known[s], v) for s, v in zip(points.steps[name], points.values[name], strict=True) if s in known]
    off = sum(not np.isclose(a, b, rtol=SAME, atol=1e-12, equal_nan=True) for a, b in both)
    return off > 0.1 * len(both)

"""`holdfast watch RUN`: the audit's checks while a run writes, in the terminal."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live

from holdfast.audit.judge.auditor import Auditor
from holdfast.audit.judge.finding import SEVERITIES, Finding
from holdfast.audit.judge.verdict import verdict_of
from holdfast.audit.read.loaders.loader import SourceFile
from holdfast.audit.read.loaders.own import ends_as_parquet
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.scalars.runs import find_logs, read_scalars
from holdfast.audit.read.source import find_files, read_files
from holdfast.audit.show.terminal import line, summary
from holdfast.commands.audit import exit_code, take_scalars
from holdfast.errors import DataError


@dataclass
class Watcher:
    """Feeds the complete new files of a folder to one audit.

    A file is complete once its size and time did not change between two looks; parquet also has to end as parquet
    does. A file that changes after it was read is read no second time; a note says so.
    """

    path: Path
    auditor: Auditor
    seen: dict[Path, tuple[int, int]] = field(default_factory=dict)
    done: dict[Path, tuple[int, int]] = field(default_factory=dict)
    logs: dict[Path, tuple[int, int] | None] = field(default_factory=dict)
    """Logs of numbers that were read, as they were then."""

    def look(self, *, settled: bool = False) -> list[Path]:
        """Read what is complete and new; `settled` takes files at the first look. Returns what was read.

        Where there are no rollouts, logs of numbers by step are read anew whenever one has changed.
        """
        found = self._look_for_rollouts(settled=settled)
        return found or ([] if self.done else self._look_for_numbers())

    @property
    def nothing(self) -> bool:
        """Whether nothing that can be judged was read yet."""
        return not self.auditor.facts.sequences and self.auditor.scalars is None

    def _look_for_numbers(self) -> list[Path]:
        logs = find_logs(self.path) if self.path.exists() else []
        marks = {log: _mark(log) for log in logs}
        if not logs or marks == self.logs:
            return []
        changed = [log for log in logs if self.logs.get(log) != marks[log]]
        reading = Reading(columns=self.auditor.reading.columns)
        try:
            numbers = read_scalars(self.path, reading)
        except DataError as error:  # being written, or of several runs: it is said, and looked at again
            self.auditor.reading.note(str(error))
            return []
        self.logs = marks
        self.auditor = Auditor(reading)
        if numbers is not None:
            take_scalars(numbers, self.auditor)
        return changed

    def _look_for_rollouts(self, *, settled: bool) -> list[Path]:
        reading = self.auditor.reading
        ready: list[SourceFile] = []
        for file in self._files():
            mark = _mark(file.path)
            if mark is None:
                continue
            if file.path in self.done:
                if self.done[file.path] != mark:
                    reading.note(f"{file.path} changed after it was read: audit the run again when it is finished")
                continue
            if ends_as_parquet(file.path) and (settled or self.seen.get(file.path) == mark):
                ready.append(file)
                self.done[file.path] = mark
            self.seen[file.path] = mark
        for file, chunk in read_files(ready, reading):
            self.auditor.feed(chunk, str(file.path))
        return [file.path for file in ready]

    def _files(self) -> list[SourceFile]:
        try:
            return find_files(self.path, note=self.auditor.reading.note)
        except DataError:  # nothing there yet
            return []


def run(argv: Sequence[str]) -> int:
    """Watch until interrupted (the command line then exits with 130); with --once, look once and judge."""
    options = parser().parse_args(argv)
    watcher = Watcher(options.path, Auditor(Reading(allow_pickle=options.allow_pickle)))
    console = Console()
    if options.once:
        return _once(watcher, console, options)
    if console.is_terminal:
        _live(watcher, console, options.every)
    _lines(watcher, console, options.every)
    return 0


def _once(watcher: Watcher, console: Console, options: argparse.Namespace) -> int:
    watcher.look(settled=True)
    audit = watcher.auditor.result()
    if watcher.nothing:
        if watcher.path.exists():
            read_scalars(watcher.path, Reading())  # these two say what is wrong with the path
        find_files(watcher.path)
        raise DataError(f"{watcher.path}: no complete file with a usable rollout yet")
    console.print(summary(audit))
    return exit_code(audit, options.fail_on, allow_unjudged=options.allow_unjudged)


def _live(watcher: Watcher, console: Console, every: float) -> None:
    with Live(line(f"waiting for rollouts or numbers in {watcher.path}"), console=console, auto_refresh=False) as live:
        while True:
            watcher.look()
            audit = watcher.auditor.result()
            files = len(watcher.done or watcher.logs)
            head = f"{watcher.path}: {files} files, looked at {time.strftime('%H:%M:%S')}; Ctrl-C stops"
            body = line("waiting for the first complete file") if watcher.nothing else summary(audit)
            live.update(Group(line(head, "dim"), line(""), body), refresh=True)
            time.sleep(every)


def _lines(watcher: Watcher, console: Console, every: float) -> None:
    """One line per look that read something, and one per finding that is new or worse."""
    told: dict[str, str] = {}
    say(console, f"watching {watcher.path}")
    while True:
        if read := watcher.look():
            audit = watcher.auditor.result()
            say(console, f"{read[-1].name}: {verdict_of(audit)}")
            for text in news(audit.findings, told):
                say(console, text)
        time.sleep(every)


def news(findings: Sequence[Finding], told: dict[str, str]) -> list[str]:
    """Findings whose severity was not told yet; `told` remembers."""
    fresh = [f for f in findings if told.get(f.name) != f.severity]
    told |= {f.name: f.severity for f in fresh}
    return [f"[{f.severity}] {f.name}: {f.headline}. {f.fix}" for f in fresh]


def say(console: Console, text: str) -> None:
    """One line, flushed: a log file shows it at once."""
    console.print(line(text), soft_wrap=True)
    console.file.flush()


def _mark(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="holdfast watch", description=__doc__, allow_abbrev=False)
    made.add_argument("path", type=Path, help="the folder of a run that writes rollouts or numbers, or a file")
    made.add_argument("--every", type=float, default=5.0, help="seconds between two looks (5)")
    made.add_argument("--once", action="store_true", help="look once, print the verdict, exit like `holdfast audit`")
    made.add_argument("--fail-on", choices=(*SEVERITIES, "never"), default="warning", help="with --once")
    made.add_argument("--allow-unjudged", action="store_true", help="with --once")
    made.add_argument("--allow-pickle", action="store_true", help="read pickles, which can run any code")
    return made

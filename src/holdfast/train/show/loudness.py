"""How much a long command says: `--log-level` and `--quiet`, and each warning once, with a count at the end."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console

from holdfast.train.show.display import Display, Lines, Milestones, Panels, Quiet

LEVELS = ("info", "warning", "error")


def add_loudness(parser: argparse.ArgumentParser) -> None:
    """The options of a command that runs for long."""
    parser.add_argument(
        "--log-level",
        choices=LEVELS,
        default="info",
        help="info: a line a step (a panel on a terminal); warning: warnings only; error: errors only (info)",
    )
    parser.add_argument("--quiet", "-q", action="store_const", const="error", dest="log_level", help="errors only")


class WarningsOnly(Lines):
    """Each warning once, after its step and the run's label; nothing else."""

    def __init__(self, console: Console, label: str = "") -> None:
        super().__init__(console)
        self.label = f"{label}: " if label else ""

    def begin(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def warm(self, done: int, total: int, loss: float) -> None: ...

    def step(self, record: Mapping[str, Any], total: int) -> None:
        for warning in self.told.take(record.get("warnings", []), record["step"]):
            super().note(f"{self.label}step {record['step']}/{total}  warning: {warning}")


def display_of(console: Console, level: str) -> Display:
    """What shows a run at this level."""
    if level == "error":
        return Quiet()
    if level == "warning":
        return WarningsOnly(console)
    return Panels(console) if console.is_terminal else Lines(console)


def display_among_others(console: Console, label: str, level: str) -> Display:
    """The same for a run among others, which has a label."""
    if level == "error":
        return Quiet()
    return WarningsOnly(console, label) if level == "warning" else Milestones(console, label)


def counted(warnings: Iterable[tuple[str, list[int]]]) -> list[str]:
    """A line for each kind of warning of a run that came at several steps."""
    return [
        f"warning at {len(steps)} steps, first {steps[0]}, last {steps[-1]}: {text}"
        for text, steps in warnings
        if len(steps) > 1
    ]

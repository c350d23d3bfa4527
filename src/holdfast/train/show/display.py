"""What a person sees while a run goes on: a live panel on a terminal, one line per step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from holdfast.errors import visible
from holdfast.report.metrics import kind_of_warning


@runtime_checkable
class Display(Protocol):
    """Receives what happens; shows it or not."""

    def begin(self, text: str) -> None:
        """What the run is, before anything is loaded."""

    def note(self, text: str) -> None:
        """A sentence that stays."""

    def warm(self, done: int, total: int, loss: float) -> None:
        """One update of the warm start."""

    def step(self, record: Mapping[str, Any], total: int) -> None:
        """One line of metrics.jsonl."""


class Quiet:
    """Shows nothing."""

    def begin(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def warm(self, done: int, total: int, loss: float) -> None: ...

    def step(self, record: Mapping[str, Any], total: int) -> None: ...


class Told:
    """The warnings that were said, by kind: how often, and when last."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[str, int, int]] = {}

    def take(self, warnings: Iterable[str], step: int = 0) -> list[str]:
        """Count a step's warnings; those of a kind that was not there before."""
        fresh = []
        for text in warnings:
            kind = kind_of_warning(text)
            if kind not in self.seen:
                fresh.append(text)
            self.seen[kind] = (text, self.seen.get(kind, ("", 0, 0))[1] + 1, step)
        return fresh


class Lines:
    """One plain line per step: what a log file or a pipe gets. A warning of a kind that was said is not said again."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.clock = _Clock()
        self.told = Told()

    def begin(self, text: str) -> None:
        self.note(text)

    def note(self, text: str) -> None:
        self.console.print(visible(text, keep="\n"), markup=False, highlight=False, soft_wrap=True)

    def warm(self, done: int, total: int, loss: float) -> None:
        if done == total or done % max(1, total // 10) == 0:
            self.note(f"warm start {done}/{total}  loss {loss:.4f}")

    def step(self, record: Mapping[str, Any], total: int) -> None:
        left = self.clock.left(record["step"], total)
        cells = [f"{label} {text}" for label, text in cells_of(record)]
        self.note(f"step {record['step']}/{total}  " + "  ".join(cells) + f"  left {left}")
        for warning in self.told.take(record.get("warnings", []), record["step"]):
            self.note(f"  warning: {warning}")


class Milestones(Lines):
    """One line per evaluation, after a label: what a run among others gets."""

    def __init__(self, console: Console, label: str) -> None:
        super().__init__(console)
        self.label = label

    def begin(self, text: str) -> None: ...

    def note(self, text: str) -> None:
        super().note(f"{self.label}: {text}")

    def warm(self, done: int, total: int, loss: float) -> None:
        if done in (1, total):
            self.note("warm start begins" if done == 1 else "warm start done")

    def step(self, record: Mapping[str, Any], total: int) -> None:
        if "eval_reward" in record:
            self.note(f"step {record['step']}/{total}, reward {record['eval_reward']:.3g} on held-out problems")
        for warning in self.told.take(record.get("warnings", []), record["step"]):
            self.note(f"step {record['step']}/{total}, warning: {warning}")


class Panels:
    """A live panel: progress, time left, the latest numbers and warnings."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self.bars: dict[str, TaskID] = {}
        self.rows: list[Mapping[str, Any]] = []
        self.told = Told()
        self.live = Live(console=console, refresh_per_second=4, transient=False)

    def __enter__(self) -> Panels:
        self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.update(self._panel())
        self.live.__exit__(kind, error, trace)

    def begin(self, text: str) -> None:
        self.note(text)

    def note(self, text: str) -> None:
        self.live.console.print(visible(text, keep="\n"), markup=False, highlight=False)

    def warm(self, done: int, total: int, loss: float) -> None:
        self._advance("warm start", done, total)

    def step(self, record: Mapping[str, Any], total: int) -> None:
        self.rows = [*self.rows, record][-8:]
        self.told.take(record.get("warnings", []), record["step"])
        self._advance("training", record["step"], total)

    def _advance(self, name: str, done: int, total: int) -> None:
        if name not in self.bars:
            self.bars[name] = self.progress.add_task(name, total=total, completed=done)
        self.progress.update(self.bars[name], completed=done)
        self.live.update(self._panel())

    def _panel(self) -> Panel:
        parts: list[Any] = [self.progress]
        if self.rows:
            parts.append(_table(self.rows))
        for text, count, step in self.told.seen.values():
            often = f" ({count} steps, last {step})" if count > 1 else ""
            parts.append(Text(f"⚠ {visible(text)}{often}", style="yellow"))
        return Panel(Group(*parts), title="holdfast", border_style="dim")


COLUMNS: Sequence[tuple[str, str, str]] = (
    ("reward", "reward_mean", ".3f"),
    ("accuracy", "accuracy", ".3f"),
    ("held out", "eval_reward", ".3f"),
    ("entropy", "entropy", ".3f"),
    ("drift mean", "kl_exact_mean", ".1e"),
    ("drift max", "kl_exact_max", ".1e"),
    ("masked", "masked_sequences", ".0%"),
    ("clipped", "clip_share", ".1%"),
)


def cells_of(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and text of each number that this step measured; for exact drift the proven, else the sampled stands in."""
    stand_in = {
        "kl_exact_mean": ("kl_lower_mean", "rollout_k3_mean"),
        "kl_exact_max": ("kl_lower_max", "rollout_k2_max"),
    }
    cells = []
    for label, key, form in COLUMNS:
        known = (record[name] for name in (key, *stand_in.get(key, ())) if record.get(name) is not None)
        if (value := next(known, None)) is not None:
            cells.append((label, format(value, form)))
    return cells


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, expand=True, header_style="dim", pad_edge=False)
    table.add_column("step", justify="right")
    for label, _, _ in COLUMNS:
        table.add_column(label, justify="right")
    for record in rows:
        known = dict(cells_of(record))
        latest = "bold" if record is rows[-1] else ""
        table.add_row(str(record["step"]), *(known.get(label, "") for label, _, _ in COLUMNS), style=latest)
    return table


class _Clock:
    """Estimates the time left from the steps seen by this process."""

    def __init__(self) -> None:
        self.first: tuple[int, float] | None = None

    def left(self, step: int, total: int) -> str:
        now = time.monotonic()
        if self.first is None:
            self.first = (step, now)
            return "?"
        done = step - self.first[0]
        seconds = round((total - step) * (now - self.first[1]) / max(1, done))
        return f"{seconds // 60}:{seconds % 60:02d}"

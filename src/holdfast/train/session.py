"""A run as a person sees it: display, Ctrl-C, report; what `holdfast train` and `holdfast demo` share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from holdfast.errors import visible
from holdfast.report.metrics import read_metrics
from holdfast.train.keep.checkpoint import latest_checkpoint
from holdfast.train.keep.folder import RunFolder
from holdfast.train.settings.config import RunConfig
from holdfast.train.show.display import Panels
from holdfast.train.show.loudness import counted, display_of


@dataclass(frozen=True)
class Session:
    """How a run ended."""

    summary: dict[str, Any]
    report: Path | None
    exit_code: int


class StopRequest:
    """Set by the first Ctrl-C; the second one interrupts at once."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self) -> bool:
        return self.requested


@contextmanager
def stop_on_interrupt(note: Any) -> Iterator[StopRequest]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into a request to stop after the current step."""
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request.requested and number != signal.SIGHUP:
            raise KeyboardInterrupt
        request.requested = True
        with suppress(OSError):  # a terminal that hung up
            note("interrupted: finishing this step, then saving a checkpoint and the report (again to stop at once)")

    # Where a hang-up is ignored, as under nohup, it stays so.
    hears = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in hears}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_session(
    config: RunConfig,
    folder: RunFolder,
    *,
    resume: bool = False,
    warm_starts: Path | None = None,
    level: str = "info",
) -> Session:
    """Train with a display of this level, then write the report; exit code 130 where a person stopped it.

    A run that was halted or interrupted says so at any level, on the error output where nothing else is said.
    """
    from holdfast.report.run import write_run_report
    from holdfast.train.loop import train

    console = Console()
    with ExitStack() as stack:
        display = display_of(console, level)
        if isinstance(display, Panels):
            stack.enter_context(display)
        request = stack.enter_context(stop_on_interrupt(display.note))
        try:
            summary = train(config, folder, display=display, resume=resume, warm_starts=warm_starts, stop=request)
        except KeyboardInterrupt:
            request.requested = True
            summary = {"finished": False, "steps": _kept_steps(folder)}
        except Exception:
            if folder.metrics.is_file():
                with suppress(Exception):  # the report is beside the point now
                    display.note(f"what was done so far is in the report: {write_run_report(folder.path)}")
            elif not resume:
                folder.discard()  # nothing was begun, and the next try may have the name
            raise
        report = write_run_report(folder.path) if folder.metrics.is_file() else None
    text = ending(summary, folder, report)
    if level == "info":
        text = "\n".join([*counted(read_metrics(folder.metrics).warnings()), text])
    if level == "info" or not summary["finished"]:
        out = console if level == "info" else Console(stderr=True)
        with suppress(OSError):
            out.print(visible(text, keep="\n"), markup=False, highlight=False, soft_wrap=True)
    code = 1 if "halted" in summary else 130 if request.requested and not summary["finished"] else 0
    return Session(summary, report, code)


def _kept_steps(folder: RunFolder) -> int:
    checkpoint = latest_checkpoint(folder.checkpoints)
    return 0 if checkpoint is None else int(checkpoint.name.split("_")[1])


def ending(summary: dict[str, Any], folder: RunFolder, report: Path | None) -> str:
    """The last words of a run: what came out and where it is."""
    lines = []
    if "start_reward" in summary:
        told = "" if "start_accuracy" not in summary else " (rewards are 0 or 1: the share of right answers)"
        lines.append(
            f"mean reward on held-out problems: {summary['start_reward']:.3g} at the start, "
            f"{summary['final_reward']:.3g} after {summary['steps']} steps{told}"
        )
    if "best_step" in summary:
        lines.append(
            f"best held-out reward: {summary['best_reward']:.3g} after {summary['best_step']} steps, kept in "
            f"{folder.path / summary['best_model']}"
        )
    if "hub" in summary:
        lines.append(summary["hub"])
    if halted := summary.get("halted"):
        page = f"; the evidence: {halted['page']}" if "page" in halted else ""
        lines.append(
            f"halted by the guard after step {halted['step']} ({halted['alarm']}, {halted['severity']}): "
            f"{halted['headline']}. {halted['fix']}{page}\ncontinue all the same with: holdfast train --run-dir "
            f"{folder.path} --resume --guard.halt_on never"
        )
    elif not summary["finished"]:
        kept = f"{summary['steps']} steps are kept" if summary["steps"] else "no step is kept yet"
        lines.append(f"interrupted; {kept}; continue with: holdfast train --run-dir {folder.path} --resume")
    return "\n".join([*lines, *([f"report: {report}"] if report else [])])

"""What the parts of the GPU check share: the device, the time that is left, and lines that are written as they come."""

from __future__ import annotations

import gc
import json
import signal
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch


class OutOfTime(BaseException):
    """A part has used up its seconds; no handler for ordinary errors swallows it."""


class Timing(NamedTuple):
    """Median seconds, peak bytes beyond what was there before, seconds of the first call (Triton compiles in it)."""

    seconds: float
    peak: float
    first: float


@dataclass
class Check:
    """One run of the check; `note` prints a line of JSON and appends it to `folder`/results.jsonl."""

    device: str
    budget: float
    folder: Path
    start: float = field(default_factory=time.monotonic)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def cuda(self) -> bool:
        """Whether a GPU is checked; otherwise this is a dry run with small sizes."""
        return self.device == "cuda"

    @property
    def left(self) -> float:
        """Seconds that are left of the budget."""
        return self.budget - (time.monotonic() - self.start)

    def note(self, part: str, **values: Any) -> None:
        """One finding."""
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
        row = {"part": part, "t": round(time.monotonic() - self.start, 1)} | rounded
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        with (self.folder / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def guarded(self, part: str, run: Callable[[Check], None]) -> None:
        """Run one part; what it raises is a finding, and it ends when the budget does."""
        if self.left < 20:
            self.note(part, not_run="no time left")
            return
        try:
            signal.signal(signal.SIGALRM, _raise_out_of_time)
            signal.setitimer(signal.ITIMER_REAL, self.left - 10)
            run(self)
        except OutOfTime:
            self.note(part, cut_short="the budget is used up")
        except Exception as error:
            places = traceback.extract_tb(error.__traceback__)[-6:]
            at = [f"{Path(place.filename).name}:{place.lineno}" for place in places]
            self.note(part, failed=f"{type(error).__name__}: {str(error)[:300]}", at=at)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.clear()

    def sync(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def clear(self) -> None:
        """Give memory back and start a new peak."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        """Peak bytes on the GPU since `clear`; 0 on a CPU."""
        return float(torch.cuda.max_memory_allocated()) if self.cuda else 0.0

    def timed(self, run: Callable[[], None], repeats: int = 5, limit: float = 12.0) -> Timing | None:
        """Medians after a warm-up, cut off at `limit` seconds in all; None where memory does not suffice."""
        try:
            self.clear()
            before = torch.cuda.memory_allocated() if self.cuda else 0
            first = self._once(run)
            peak = self.peak() - before if self.cuda else 0.0
            seen: list[float] = []
            while len(seen) < repeats and sum(seen) < limit:
                seen.append(self._once(run))
            return Timing(statistics.median(seen), peak, first)
        except torch.OutOfMemoryError:
            self.clear()
            return None

    def _once(self, run: Callable[[], None]) -> float:
        self.sync()
        start = time.perf_counter()
        run()
        self.sync()
        return time.perf_counter() - start


def _raise_out_of_time(*_: Any) -> None:
    raise OutOfTime

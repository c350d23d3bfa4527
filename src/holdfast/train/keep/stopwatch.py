"""Where a step's time went: wall seconds per activity, CPU seconds of this process and of an engine elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopwatch:
    """Runs from its creation; named stretches are added up, the rest is "other".

    `elsewhere` are CPU seconds that other processes spent for this step.
    """

    def __init__(self) -> None:
        self.started = _now()
        self.elsewhere = 0.0
        self.stretches: dict[str, tuple[float, float]] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Count the enclosed stretch under `name`."""
        started = _now()
        try:
            yield
        finally:
            wall, cpu = self.stretches.get(name, (0.0, 0.0))
            now = _now()
            self.stretches[name] = (wall + now[0] - started[0], cpu + now[1] - started[1])

    def record(self, tokens: int) -> dict[str, Any]:
        """seconds, cpu_seconds, time_split in wall seconds, and trained tokens per CPU second without evaluation."""
        seconds, cpu_seconds = (now - start for now, start in zip(_now(), self.started, strict=True))
        split = {name: wall for name, (wall, _) in self.stretches.items()}
        cpu_seconds += self.elsewhere
        training = cpu_seconds - self.stretches.get("evaluate", (0.0, 0.0))[1]
        return {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "tokens_per_cpu_second": tokens / max(training, 1e-9),
            "time_split": split | {"other": max(0.0, seconds - sum(split.values()))},
        }


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()

"""Where a step's time went: wall seconds per activity, and CPU seconds of the whole process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopwatch:
    """Runs from its creation; named stretches are added up, the rest is "other"."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.cpu_started = time.process_time()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Count the enclosed stretch under `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def record(self, tokens: int) -> dict[str, Any]:
        """seconds, cpu_seconds, tokens_per_cpu_second (evaluation included) and time_split."""
        seconds, cpu = time.perf_counter() - self.started, time.process_time() - self.cpu_started
        split = self.seconds | {"other": max(0.0, seconds - sum(self.seconds.values()))}
        return {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "tokens_per_cpu_second": tokens / max(cpu, 1e-9),
            "time_split": split,
        }

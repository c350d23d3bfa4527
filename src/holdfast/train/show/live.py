"""The report of a run while it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass

from holdfast.train.keep.folder import RunFolder

SHARE = 0.02
"""Of the run's time that writing the page may take: it reads every logged rollout, so it is written more seldom."""


@dataclass
class LivePage:
    """Writes report.html every `every` steps (0: never), and not before the last writing has paid off."""

    folder: RunFolder
    every: int
    _next: float = 0.0
    _told: bool = False

    def after(self, step: int) -> str | None:
        """Write it where it is due; what went wrong is said once, and ends nothing."""
        started = time.monotonic()
        if not self.every or step % self.every or started < self._next:
            return None
        from holdfast.report.run import write_run_report

        try:
            write_run_report(self.folder.path)
        except Exception as error:  # the page is beside the point while training goes on
            said, self._told = None if self._told else f"report.html could not be written: {error}", True
            return said
        finally:
            ended = time.monotonic()
            self._next = ended + (ended - started) / SHARE
        return None

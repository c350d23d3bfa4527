"""Sums by training step and weight version: the age of weights is known once all steps before have been read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from holdfast.audit.measure.adding import add_up, hash_numbers
from holdfast.audit.measure.tokens import UNKNOWN
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

PACE = 0.2
"""Versions count steps where they rise by one a step, give or take this, over the later half of the run."""
OLDER = -2
"""The version under which all are summed that are so old that ages tell them apart no more."""


class Ages:
    """Sums by step and version, and from them by age: how many versions behind the newest one of the steps so far.

    One version is one update where the source counts updates. Where no step is recorded, the place in the log stands
    for it. Versions `oldest` or more behind the newest of their own step are summed together. At most `most` steps are
    kept, those of the smallest hashes.
    """

    def __init__(self, oldest: int, most: int | None = None) -> None:
        self.oldest, self.most = oldest, most
        self.newest: dict[int, int] = {}
        self.cells: dict[int, dict[int, Column]] = {}

    @staticmethod
    def steps_of(view: View) -> Column:
        """[N] the step, or a negative number that rises with the place in the log."""
        return np.where(view.step >= 0, view.step, UNKNOWN // 2 + view.first_sequence)

    def add(self, step: int, version: int, sums: Column) -> None:
        """Add sums of a step's tokens of one version, -1 where it is not recorded."""
        self.newest[step] = max(self.newest.get(step, -1), version)
        if self._wanted(step):
            cells = self.cells.setdefault(step, {})
            cells[version] = cells[version] + sums if version in cells else sums
            self._bound(step)

    def merge(self, other: Ages) -> None:
        """Add another's sums."""
        for step, newest in other.newest.items():
            self.newest[step] = max(self.newest.get(step, -1), newest)
        for step, cells in other.cells.items():
            if self._wanted(step):
                self.cells[step] = add_up(self.cells.get(step), cells)
                self._bound(step)

    def by_age(self, *, paced: bool = False) -> Iterator[tuple[int, int, Column]]:
        """(step, age, sums), step after step; the age is -1 where it is not known, and `oldest` at most.

        `paced`: where versions count steps, ages are behind the trainer's own version, which is as far ahead of the
        step's number as any version of the run was. Rollouts that are all one update late then have age 1, and not 0.
        """
        newest, ahead = -1, self._ahead() if paced else None
        for step in sorted(self.newest):
            newest = max(newest, self.newest[step]) if ahead is None else step + ahead
            for version, sums in sorted(self.cells.get(step, {}).items()):
                age = -1 if version == -1 else self.oldest if version == OLDER else newest - version
                yield step, min(age, self.oldest), sums

    def _ahead(self) -> int | None:
        """Largest version less step; None where the versions do not rise by one a step."""
        known = {step: version for step, version in self.newest.items() if step >= 0 and version >= 0}
        if len(known) < 2 or len(known) < len(self.newest):
            return None
        # The first steps of an asynchronous run all have the first version, so the later half tells the pace.
        steps = sorted(known)
        first, last = steps[(len(steps) - 1) // 2], steps[-1]
        if abs((known[last] - known[first]) / (last - first) - 1) > PACE:
            return None
        return max(version - step for step, version in known.items())

    def _wanted(self, step: int) -> bool:
        if self.most is None or step in self.cells or len(self.cells) < self.most:
            return True
        return _key(step) < max(map(_key, self.cells))

    def _bound(self, step: int) -> None:
        cells = self.cells[step]
        for version in [v for v in cells if 0 <= v <= self.newest[step] - self.oldest]:
            cells[OLDER] = add_up(cells.get(OLDER), cells.pop(version))
        if self.most is not None and len(self.cells) > self.most:
            del self.cells[max(self.cells, key=_key)]


@lru_cache(maxsize=1 << 14)
def _key(step: int) -> int:
    return int(hash_numbers(step)[0])

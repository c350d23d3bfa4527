"""Whether an engine's logits were rounded to half precision: its log-probabilities then lie on a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

COARSE, FINE = 2.0**-5, 2.0**-11
"""Between neighbouring numbers of 8 significant bits (bfloat16) from 4 up, and of 11 (float16) from .5 up, in size.

Larger numbers lie further apart, so float16 from 32 up would pass for bfloat16, and bfloat16 below 4 for either.
"""
TOLERANCE = 1e-5
"""Nats that float32 loses on the way from a logit to a log-probability, at most."""
TOP, POSITIONS = 20, 8
"""Likeliest tokens of a position, and first positions of a response, that are looked at."""
FEWEST, SHARE = 100, 0.5
"""Pairs that are needed, and the share of them on a grid from which it is no chance: by chance 2 · TOLERANCE / spacing,
.06 % and 4 %."""
BFLOAT16, HALF = "bfloat16", "half precision"


@dataclass(frozen=True)
class Grid:
    """Pairs of neighbouring log-probabilities of one position, and how many of them lie on the two grids.

    log p(a) - log p(b) = (logit a - logit b) / temperature: what all tokens share is gone.
    """

    pairs: int = 0
    coarse: int = 0
    fine: int = 0

    def __add__(self, other: Grid) -> Grid:
        return Grid(self.pairs + other.pairs, self.coarse + other.coarse, self.fine + other.fine)

    @property
    def known(self) -> bool:
        """Whether there are pairs enough to tell."""
        return self.pairs >= FEWEST

    @property
    def precision(self) -> str | None:
        """BFLOAT16, or HALF where it may be float16 too; None where the logits were not rounded, or it is not `known`.

        Both are said of the logits: layers may have computed in another precision.
        """
        if not self.known:
            return None
        return BFLOAT16 if self._on(self.coarse) else HALF if self._on(self.fine) else None

    @property
    def share(self) -> float:
        """Of the pairs, on the grid of that precision; 0 where there is none."""
        on = {BFLOAT16: self.coarse, HALF: self.fine}
        return on[self.precision] / self.pairs if self.precision else 0.0

    def _on(self, count: int) -> bool:
        return count > SHARE * self.pairs


def grid_of(reports: Sequence[Tensor], temperature: float) -> Grid:
    """The pairs in reports of log-probabilities [T, K], one for each response, sampled at this temperature."""
    found = Grid()
    for report in reports:
        highest = report[:POSITIONS].topk(min(TOP, report.shape[1]), dim=1).values.double()
        apart = (highest[:, :-1] - highest[:, 1:]) * temperature
        apart = apart[apart.isfinite()]
        found += Grid(apart.numel(), _on_grid(apart, COARSE), _on_grid(apart, FINE))
    return found


def _on_grid(apart: Tensor, step: float) -> int:
    return int(((apart / step - (apart / step).round()).abs() * step <= TOLERANCE).sum())

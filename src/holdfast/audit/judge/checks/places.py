"""The worst tokens a check has seen, to show where."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np

from holdfast.audit.judge.finding import Where
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

MOST = 10


@dataclass
class Places:
    """At most MOST tokens: those of largest badness, the first ones among equals."""

    _kept: list[tuple[float, int, int]] = field(default_factory=list)

    def add(self, view: View, tokens: Column, badness: Column | None = None) -> None:
        """Offer tokens (indices into the chunk), each with its badness."""
        weights = np.zeros(len(tokens)) if badness is None else np.asarray(badness, np.float64)
        for i in np.argsort(-weights, kind="stable")[:MOST]:
            token = tokens[i]
            sequence = int(np.searchsorted(view.chunk.offsets, token, side="right")) - 1
            entry = (float(weights[i]), -view.first_sequence - sequence, -int(token - view.chunk.offsets[sequence]))
            (heapq.heappush if len(self._kept) < MOST else heapq.heappushpop)(self._kept, entry)

    def where(self) -> Where:
        """Sequences and positions, worst first."""
        places = tuple((-sequence, -position) for _, sequence, position in sorted(self._kept, reverse=True))
        return Where(sequences=tuple(dict.fromkeys(s for s, _ in places)), positions=places)

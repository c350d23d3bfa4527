"""Whole rollouts kept aside: a uniform sample for what is too dear to compute on all, and the worst ones to look at."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from holdfast.audit.measure.view import View
from holdfast.types import Rollout

Promise = Callable[[], Rollout]
SAMPLE_TOKENS = 1_000_000
WORST = 24


@dataclass
class Sample:
    """`uniform` rollouts are drawn with equal probability per prompt fold; `worst` have the largest |log-ratio|.

    Both carry the sequence's number in reading order.
    """

    tokens: int = SAMPLE_TOKENS
    seed: int = 0
    _kept: list[tuple[float, int, int, Promise]] = field(default_factory=list)
    _kept_tokens: int = 0
    _worst: list[tuple[float, int, Promise]] = field(default_factory=list)

    def update(self, view: View) -> None:
        """Draw from a chunk: a sequence's key is a hash of its number, and the smallest keys stay."""
        numbers = view.first_sequence + np.arange(len(view.chunk), dtype=np.int64)
        keys = np.random.default_rng([self.seed, view.first_sequence]).random(len(numbers))
        limit = -self._kept[0][0] if self._kept and self._kept_tokens >= self.tokens else np.inf
        for i in np.flatnonzero(keys < limit):
            if self._kept_tokens >= self.tokens and keys[i] >= -self._kept[0][0]:
                continue
            length = int(view.lengths[i])
            heapq.heappush(self._kept, (-float(keys[i]), int(numbers[i]), length, view.chunk.keep(int(i))))
            self._kept_tokens += length
            while self._kept_tokens - self._kept[0][2] >= self.tokens:
                self._kept_tokens -= heapq.heappop(self._kept)[2]
        self._update_worst(view, numbers)

    def uniform(self) -> list[tuple[int, Rollout]]:
        """(number, rollout) of the uniform sample, in reading order."""
        return [(number, promise()) for _, number, _, promise in sorted(self._kept, key=lambda item: item[1])]

    def worst(self) -> list[tuple[int, Rollout]]:
        """(number, rollout) with the largest |log-ratio| on one token, worst first, with the texts of their source."""
        ordered = sorted(self._worst, key=lambda item: (-item[0], item[1]))
        return [(number, getattr(promise, "whole", promise)()) for _, number, promise in ordered]

    def _update_worst(self, view: View, numbers: np.ndarray) -> None:
        largest = view.max(view.size)
        for i in np.argsort(-largest, kind="stable")[:WORST]:
            entry = (float(largest[i]), int(numbers[i]))
            if len(self._worst) >= WORST and entry[0] <= self._worst[0][0]:
                break
            item = (*entry, view.chunk.keep(int(i)))
            (heapq.heappush if len(self._worst) < WORST else heapq.heappushpop)(self._worst, item)

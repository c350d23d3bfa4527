"""Whole rollouts kept aside: a uniform sample for what is too dear to compute on all, and the worst ones to look at."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from holdfast.audit.measure.adding import Sampled, hash_numbers
from holdfast.audit.measure.tokens import FILE_BITS
from holdfast.audit.measure.view import View
from holdfast.types import Rollout

Promise = Callable[[], Rollout]
SAMPLE_TOKENS = 1_000_000
WORST = 24


@dataclass
class Sample:
    """`uniform` rollouts are drawn with equal probability; `worst` have the largest |log-ratio|, the first of equals.

    Both carry the sequence's number in reading order, once `starts` says how many sequences each file begins after.
    """

    tokens: int = SAMPLE_TOKENS
    seed: int = 0
    starts: Mapping[int, int] = field(default_factory=dict)
    _kept: Sampled[tuple[int, Promise]] = field(init=False)
    _worst: list[tuple[float, int, Promise]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._kept = Sampled(self.tokens)

    def update(self, view: View) -> None:
        """Draw from a chunk: a sequence's key is a hash of its number, and the smallest keys stay."""
        keys = hash_numbers(view.numbers_in_log, self.seed)
        for i in np.flatnonzero(keys < np.uint64(min(self._kept.limit(), (1 << 64) - 1))):
            if self._kept.wants(int(keys[i])):
                kept = (int(view.numbers_in_log[i]), view.chunk.keep(int(i)))
                self._kept.add(int(keys[i]), max(1, int(view.lengths[i])), kept)
        self._update_worst(view)

    def merge(self, other: Sample) -> None:
        """Draw from another's rollouts."""
        self._kept.merge(other._kept)
        self._worst = heapq.nlargest(WORST, self._worst + other._worst, key=lambda item: item[:2])
        heapq.heapify(self._worst)

    def placed(self, starts: Mapping[int, int]) -> Sample:
        """The same rollouts with their numbers in reading order; it shares what is kept with this one."""
        other = Sample(self.tokens, self.seed, starts)
        other._kept, other._worst = self._kept, self._worst
        return other

    def uniform(self) -> Iterator[tuple[int, Rollout]]:
        """(number, rollout) of the uniform sample, in reading order; each is made when it is asked for."""
        for number, promise in sorted(self._kept.values(), key=lambda item: item[0]):
            yield in_reading_order(number, self.starts), promise()

    def worst(self) -> list[tuple[int, Rollout]]:
        """(number, rollout) with the largest |log-ratio| on one token, worst first, with the texts of their source."""
        ordered = sorted(self._worst, key=lambda item: (-item[0], -item[1]))
        return [
            (in_reading_order(-number, self.starts), getattr(promise, "whole", promise)())
            for _, number, promise in ordered
        ]

    def _update_worst(self, view: View) -> None:
        largest = view.max(view.size)
        for i in np.argsort(-largest, kind="stable")[:WORST]:
            entry = (float(largest[i]), -int(view.numbers_in_log[i]))
            if len(self._worst) >= WORST and entry < self._worst[0][:2]:
                break
            item = (*entry, view.chunk.keep(int(i)))
            (heapq.heappush if len(self._worst) < WORST else heapq.heappushpop)(self._worst, item)


def in_reading_order(number: int, starts: Mapping[int, int]) -> int:
    """How many sequences come before the one of this number, with those that come before each file."""
    place = number >> FILE_BITS
    return number - (place << FILE_BITS) + starts.get(place, 0)

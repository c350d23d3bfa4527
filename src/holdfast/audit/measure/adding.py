"""How parts of a measurement add up: a state of sums, sets and samples is merged part by part, in any order.

Whole numbers add up exactly, and real ones to their rounding: two orders of the same shards differ by less than 1e-9
of a sum. What is more than a sum says in a method `merge(other)` how it adds up. Where only a part can be kept, it is
chosen by a number that each item has of itself (a hash of where it stands in the log, or of its name), never by when
it came: the same part is then kept in any order.
"""

from __future__ import annotations

import bisect
import heapq
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from holdfast.audit.read.columns import Column

T = TypeVar("T")
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def hash_numbers(numbers: Column | int, seed: int = 0) -> Column:
    """A hash of each whole number, uint64 of the same shape: equal in every process (SplitMix64's finaliser)."""
    z = np.atleast_1d(np.asarray(numbers)).astype(np.uint64)
    z = z + np.uint64((0x9E3779B97F4A7C15 * (seed + 1)) & 0xFFFFFFFFFFFFFFFF)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX[0])
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX[1])
    return z ^ (z >> np.uint64(31))


def hash_text(text: str) -> int:
    """A hash of a text, equal in every process."""
    return zlib.crc32(text.encode(errors="surrogatepass"))


def add_up(mine: Any, theirs: Any) -> Any:
    """Two states as one: what `merge` says, else sums of numbers and arrays, unions of sets, attribute by attribute.

    `mine` may be changed, `theirs` is not to be used again. None stands for nothing.

    Raises:
        TypeError: two things that do not add up, by their types.
    """
    if theirs is None or mine is None:
        return mine if theirs is None else theirs
    if hasattr(mine, "merge"):
        mine.merge(theirs)
        return mine
    if isinstance(mine, bool):
        return mine or theirs
    if isinstance(mine, (int, float, np.number, np.ndarray)):
        return mine + theirs
    if isinstance(mine, set):
        return mine | theirs
    if isinstance(mine, dict):
        for key, value in theirs.items():
            mine[key] = add_up(mine[key], value) if key in mine else value
        return mine
    if isinstance(mine, (list, tuple)) and len(mine) == len(theirs):
        return type(mine)(add_up(a, b) for a, b in zip(mine, theirs, strict=True))
    if type(mine) is type(theirs) and hasattr(mine, "__dict__"):
        for name in vars(mine):
            setattr(mine, name, add_up(getattr(mine, name), getattr(theirs, name)))
        return mine
    raise TypeError(f"{type(mine).__name__} and {type(theirs).__name__} do not add up")


@dataclass
class First:
    """The smallest of many whole numbers: sequences to show, those first in the log."""

    most: int = 10
    numbers: list[int] = field(default_factory=list)

    def add(self, numbers: Iterable[int]) -> None:
        """Offer numbers in rising order."""
        for number in numbers:
            if len(self.numbers) >= self.most and number >= self.numbers[-1]:
                return
            bisect.insort(self.numbers, int(number))
            del self.numbers[self.most :]

    def merge(self, other: First) -> None:
        """Add another's."""
        self.numbers = sorted(self.numbers + other.numbers)[: self.most]


@dataclass
class Span:
    """The smallest and the largest of many numbers."""

    low: float = math.inf
    high: float = -math.inf

    def add(self, values: Column) -> None:
        """Take in numbers, all of them finite."""
        if len(values):
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def merge(self, other: Span) -> None:
        """Take in another's."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)


@dataclass
class Sampled(Generic[T]):
    """What was measured on a uniform sample of items (chunks, sequences) that weigh at least `enough` together.

    Kept are the items of the smallest keys, as few as weigh `enough`: a key is a hash of the item itself, so any order
    and any split into shards keep the same ones. All are kept while they weigh less.
    """

    enough: int
    kept: list[tuple[int, int, T]] = field(default_factory=list)
    """(-key, weight, what was measured): a heap, the largest key first."""
    weight: int = 0

    def wants(self, key: int) -> bool:
        """Whether an item of this key would be kept."""
        return self.weight < self.enough or key < -self.kept[0][0]

    def limit(self) -> int:
        """Items are kept from below this key on."""
        return 1 << 64 if self.weight < self.enough else -self.kept[0][0]

    def add(self, key: int, weight: int, value: T) -> None:
        """Offer an item; of two with one key, which do not come up in one log, the first stays."""
        if weight > 0 and self.wants(key):
            heapq.heappush(self.kept, _Item((-key, weight, value)))
            self.weight += weight
            while self.weight - self.kept[0][1] >= self.enough:
                self.weight -= heapq.heappop(self.kept)[1]

    def merge(self, other: Sampled[T]) -> None:
        """Offer another's items."""
        for key, weight, value in other.kept:
            self.add(-key, weight, value)

    def values(self) -> list[T]:
        """What was measured, in the keys' order."""
        return [value for _, _, value in sorted(self.kept, reverse=True)]


class _Item(tuple):
    """Compared by its key alone."""

    def __lt__(self, other: Any) -> bool:
        return self[0] < other[0]


@dataclass
class SampledRows:
    """Rows of numbers, about `most` of them: those of the smallest keys, and all rows of a key or none.

    Columns are arrays of one length; `add` takes a key for each row, a hash that any order of the log gives it.
    """

    most: int
    parts: list[dict[str, Column]] = field(default_factory=list)
    count: int = 0
    limit: int = 1 << 64
    """Rows from this key on are left out."""

    def add(self, keys: Column, columns: dict[str, Column]) -> None:
        """Offer rows: their keys, uint64 [N], and columns [N]."""
        if self.limit < 1 << 64:
            inside = keys < np.uint64(self.limit)
            keys, columns = keys[inside], {name: values[inside] for name, values in columns.items()}
        if len(keys):
            self.parts.append({"key": keys, **columns})
            self.count += len(keys)
        if self.count > 2 * self.most:
            self._bound()

    def merge(self, other: SampledRows) -> None:
        """Offer another's rows."""
        parts, self.parts, self.count = [*self.parts, *other.parts], [], 0
        self.limit = min(self.limit, other.limit)
        for part in parts:
            self.add(part["key"], {name: values for name, values in part.items() if name != "key"})

    def table(self) -> dict[str, Column]:
        """All columns, `key` among them, ordered by key; empty where no row was offered."""
        self._bound()
        return self.parts[0] if self.parts else {}

    def _bound(self) -> None:
        if not self.parts:
            return
        table = {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}
        order = np.argsort(table["key"], kind="stable")
        keys, last = np.unique(table["key"][order][::-1], return_index=True)
        ends = len(order) - last
        kept = max(1, int(np.searchsorted(ends, self.most, side="right")))
        if kept < len(keys):
            self.limit = int(keys[kept])
        rows = order[: int(ends[kept - 1])]
        self.parts, self.count = [{name: values[rows] for name, values in table.items()}], len(rows)

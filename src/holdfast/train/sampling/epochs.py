"""The order in which a table is gone through: every row once, then all of them again in another order."""

from __future__ import annotations

import torch

from holdfast.train.settings.seeds import derive_seed


def rows_in_epochs(seed: int, size: int, first: int, count: int) -> list[int]:
    """Rows number `first` to `first + count - 1` of an endless walk through `size` rows.

    Number n is row π_e(n mod size) in epoch e = ⌊n / size⌋, with a permutation π_e drawn from (seed, e): where a run
    stands is known from its step alone, so that a resumed run misses no row and repeats none.
    """
    rows: list[int] = []
    while len(rows) < count:
        epoch, place = divmod(first + len(rows), size)
        generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
        rows += torch.randperm(size, generator=generator)[place : place + count - len(rows)].tolist()
    return rows

"""Sizes of the GPU programs: the largest that fit the shared memory of the device, and their order on it."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

PIECE = 128
"""Columns that are summed at a time, whatever the size of the tile: the order of a row's sums is then one."""


@dataclass(frozen=True)
class Blocks:
    """Sizes of one program: rows x columns of logits in registers, `depth` of the inner product per step."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def shared_bytes(self, itemsize: int) -> int:
        """Shared memory at most: `stages` pairs of a rows x depth and a columns x depth tile.

        Hopper keeps all of them in flight, Ampere and Ada one fewer.
        """
        return self.stages * (self.rows + self.columns) * self.depth * itemsize

    def band(self, processors: int) -> int:
        """Columns of programs that run side by side, so that those at work share as few bytes as they can.

        P programs at a time cover r row blocks and b column blocks with r·b = P; r·rows + b·columns, what they read,
        is least at b = sqrt(P·rows / columns).
        """
        return max(1, round(math.sqrt(processors * self.rows / self.columns)))


@dataclass(frozen=True)
class Sizes:
    """The blocks of each program: sums alone, with a rollout head, with rollout logits, and dL/dlogits.

    The columns of `sums` are those of the other two sums or twice as many.
    """

    sums: Blocks
    rollout: Blocks
    logits: Blocks
    gradient: Blocks


@dataclass(frozen=True)
class Card:
    """What of a device decides sizes and order: shared memory of one program in bytes, and multiprocessors."""

    shared_bytes: int
    processors: int

    @staticmethod
    def of(device: torch.device) -> Card:
        """The device; Triton's interpreter on a CPU takes the sizes of an H100."""
        if device.type != "cuda":
            return Card(232448, 132)
        return _cuda(device.index if device.index is not None else torch.cuda.current_device())


def sizes_for(shared_bytes: int, itemsize: int) -> Sizes:
    """The largest blocks whose tiles of `itemsize`-byte numbers fit; the smallest where none does."""

    def first(*sizes: Blocks) -> Blocks:
        return next((b for b in sizes if b.shared_bytes(itemsize) <= shared_bytes), sizes[-1])

    usual = (Blocks(128, PIECE, 64, 8, 3), Blocks(128, PIECE, 32, 8, 3), Blocks(128, PIECE, 32, 8, 2))
    return Sizes(
        sums=first(Blocks(128, 2 * PIECE, 64, 8, 4), *usual),
        rollout=first(*usual),
        logits=first(Blocks(64, PIECE, 64, 8, 3), Blocks(64, PIECE, 32, 8, 3), Blocks(64, PIECE, 32, 8, 2)),
        gradient=first(Blocks(256, 128, 64, 8, 3), *usual),
    )


@functools.cache
def _cuda(index: int) -> Card:
    found = torch.cuda.get_device_properties(index)
    return Card(found.shared_memory_per_block_optin, found.multi_processor_count)

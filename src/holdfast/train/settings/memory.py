"""How much memory there is, and what the C library does with memory that a step has freed."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

KEPT = 1 << 30
"""Bytes at the end of the heap that stay with the process, and the size from which a block is mapped on its own."""
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD


def keep_freed_memory(kept: int = KEPT) -> bool:
    """Let the process keep `kept` bytes between steps, where it has glibc and nothing else was asked for; if it does.

    glibc gives freed blocks back to the system, tens of megabytes every step, and the system clears each page that it
    hands out again: on a CPU several percent of a small model's step. Variables of the environment that set this
    (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_, GLIBC_TUNABLES) are left in force. For the rest of the process.
    """
    told = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys()
    if not sys.platform.startswith("linux") or told or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(option, kept) for option in (TRIM_THRESHOLD, MMAP_THRESHOLD))


def free_memory(device: str, system: Path = Path("/")) -> int | None:
    """Bytes that this process can still get, or None where the system does not say.

    On a GPU what is free on it; else what the kernel thinks available, and no more than a control group leaves.
    """
    if device != "cpu":
        import torch

        return torch.cuda.mem_get_info()[0]
    found = [left for left in (_available(system), *_groups(system)) if left is not None]
    return min(found, default=None)


def total_memory() -> int | None:
    """Bytes of this machine's memory, where the system says."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _available(system: Path) -> int | None:
    line = next((line for line in _lines(system / "proc/meminfo") if line.startswith("MemAvailable:")), None)
    return None if line is None else int(line.split()[1]) * 1024


def _groups(system: Path) -> Iterator[int | None]:
    """What each control group of this process, and those above it, leave: limit - use + what the kernel can drop."""
    group = next((line[3:].strip("/") for line in _lines(system / "proc/self/cgroup") if line.startswith("0::")), "")
    for folder in (Path(group), *Path(group).parents):
        home = system / "sys/fs/cgroup" / folder
        most, used = (next(iter(_lines(home / name)), "max") for name in ("memory.max", "memory.current"))
        if "max" not in (most, used):
            stat = dict(line.split() for line in _lines(home / "memory.stat"))
            yield max(0, int(most) - int(used) + int(stat.get("inactive_file", 0)))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []

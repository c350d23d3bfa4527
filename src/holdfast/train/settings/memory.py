"""What the C library does with memory that a step has freed."""

from __future__ import annotations

import ctypes
import os
import sys

KEPT = 1 << 30
"""Bytes at the end of the heap that stay with the process, and the size from which a block is mapped on its own."""
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD


def keep_freed_memory() -> bool:
    """Let the process keep memory between steps, where it has glibc and nothing else was asked for; whether it does.

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
    return all(mallopt(option, KEPT) for option in (TRIM_THRESHOLD, MMAP_THRESHOLD))

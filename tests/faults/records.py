"""Mutated records through every loader of the audit (`tests/audit/read/test_fuzz.py`)."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from audit.read.test_fuzz import LINES, TENSORS, fuzz_lines, fuzz_tensors
from faults.told import Told


def records(count: int, seed: int) -> Told:
    """Nine tenths are lines, the others samples in files of tensors; a good record that is lost is a fault."""
    told = Told("mutated records")
    found: Counter[str] = Counter()
    for fuzz, cases in ((fuzz_lines, LINES), (fuzz_tensors, TENSORS)):
        share = -(-count * 9 // 10 // len(LINES)) if fuzz is fuzz_lines else -(-count // 10 // len(TENSORS))
        for loader, write in cases:
            told.tries += share
            with tempfile.TemporaryDirectory() as folder:
                try:
                    found += fuzz(loader, write, share, seed, Path(folder))
                except Exception as error:
                    told.fault(f"{loader.name} ({write.__name__}): {type(error).__name__}: {error}")
    told.facts = {"left out and named": found.total() - found["kept"], "kept": found["kept"]}
    return told

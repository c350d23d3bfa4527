"""How long and how much memory an audit of N tokens takes, each in a fresh process, on generated parquet.

    python benchmarks/audit.py                    # 1, 10 and 100 million tokens
    python benchmarks/audit.py --millions 10 --keep /tmp/audit-bench
    python benchmarks/audit.py --millions 20 --workers 1 2

Wall time, CPU time of all processes and the largest resident size of one, of `holdfast audit` as a user runs it.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from holdfast.rollout.store import SCHEMA

LENGTH, GROUP, STEP = 1000, 8, 256
ROWS_PER_FILE = 10_240


def main() -> None:
    """Generate, audit, print one line per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    parser.add_argument("--keep", type=Path, help="keep the generated runs in this folder and use them again")
    options = parser.parse_args()
    heads = f"{'wall s':>7} {'CPU s':>7} {'MB resident':>12} {'M tokens/s':>11}  exit"
    print(f"{'tokens':>12} {'workers':>7} {'file MB':>8} {heads}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        for millions in options.millions:
            path = folder / f"{millions}m"
            tokens = generate(path, millions * 1_000_000)
            size = sum(f.stat().st_size for f in path.glob("*.parquet")) / 1e6
            for workers in options.workers:
                command = [sys.executable, "-m", "holdfast", "audit", str(path), "--workers", str(workers)]
                wall, cpu, resident, code = measure(command, folder)
                told = f"{wall:7.1f} {cpu:7.1f} {resident:12.0f} {tokens / wall / 1e6:11.2f}  {code}"
                print(f"{tokens:12,} {workers:7} {size:8.0f} {told}", flush=True)


def generate(folder: Path, tokens: int) -> int:
    """A run of about so many tokens, unless it is already there; returns how many it has."""
    counted = folder / "tokens"
    if counted.exists():
        return int(counted.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    rng, written, rows = np.random.default_rng(0), 0, 0
    while written < tokens:
        count = min(ROWS_PER_FILE, max(GROUP, (tokens - written) // LENGTH))
        table = make(rng, rows, count)
        pq.write_table(
            table,
            folder / f"step_{rows // STEP + 1}.parquet",
            row_group_size=1024,
            compression="zstd",
            use_dictionary=["environment", "finish_reason"],
            use_byte_stream_split=[f"{n}.list.element" for n in ("rollout_logprobs", "trainer_logprobs", "entropy")],
        )
        rows += count
        written += len(table["response_ids"].combine_chunks().flatten())
    counted.write_text(str(written))
    return written


def make(rng: np.random.Generator, first: int, count: int) -> pa.Table:
    """Rollouts as a healthy run logs them, without texts: lengths uniform around LENGTH."""
    lengths = rng.integers(LENGTH // 10, 2 * LENGTH - LENGTH // 10, count)
    total, offsets = int(lengths.sum()), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    engine = -(rng.exponential(0.5, total).astype(np.float32) ** 2)
    trainer = np.minimum(engine * (1 + rng.normal(0, 0.02, total).astype(np.float32)), 0)
    number = np.arange(first, first + count)
    reward = rng.integers(0, 2, count).astype(np.float32)
    group = number // GROUP - first // GROUP
    advantage = np.repeat(reward - (np.bincount(group, reward) / np.bincount(group))[group].astype(np.float32), lengths)

    def tokens(values: np.ndarray) -> pa.ListArray:
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))

    prompts = np.repeat(number // GROUP, 20).astype(np.int32)
    columns = {
        "prompt_ids": pa.ListArray.from_arrays(pa.array(np.arange(0, 20 * count + 1, 20, dtype=np.int32)), prompts),
        "response_ids": tokens(rng.integers(0, 50_000, total).astype(np.int32)),
        "rollout_logprobs": tokens(engine),
        "trainer_logprobs": tokens(trainer),
        "response_mask": tokens(np.ones(total, bool)),
        "entropy": tokens(-engine),
        "advantages": tokens(advantage),
        "trust_mask": tokens(np.ones(total, bool)),
        "weight_versions": tokens(np.repeat(number // STEP, lengths).astype(np.int32)),
        "reward": pa.array(reward),
        "step": pa.array(number // STEP + 1),
        "sequence_id": pa.array(number),
        "group_id": pa.array(number // GROUP),
        "environment": pa.array(np.where(number % 3 == 0, "math", "code").tolist()),
        "finish_reason": pa.array(["stop"] * count),
        "temperature": pa.array(np.ones(count, np.float32)),
    }
    arrays = [columns.get(f.name, pa.nulls(count, f.type)) for f in SCHEMA]
    return pa.table([a.cast(f.type) for a, f in zip(arrays, SCHEMA, strict=True)], schema=SCHEMA)


def measure(command: list[str], folder: Path) -> tuple[float, float, float, int]:
    """Wall and CPU seconds and peak resident megabytes of a command, and its exit code."""
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--out", str(folder / "report")], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    return wall, used.ru_utime + used.ru_stime, resident_mb(used), os.waitstatus_to_exitcode(status)


def resident_mb(used: resource.struct_rusage) -> float:
    """Peak resident size; Linux counts kilobytes, macOS bytes."""
    return used.ru_maxrss / (1e3 if sys.platform != "darwin" else 1e6)


if __name__ == "__main__":
    main()

"""miles' dashboard columns: dashboard_columns/rollout_{id}.parquet, the engine's log-probabilities only.

Source: radixark/miles, `miles/ray/rollout/debug_data.py`, as of August 2026.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from holdfast.audit.read.columns import Chunk
from holdfast.audit.read.loaders.loader import Loader
from holdfast.audit.read.loaders.slime import sample_record
from holdfast.audit.read.raw.compressed import plain_name, unpacked
from holdfast.audit.read.raw.fields import Unusable
from holdfast.audit.read.raw.records import Record, pack_records
from holdfast.audit.read.reading import Reading
from holdfast.errors import DataError
from holdfast.rollout.store import open_parquet, schema_of

_COLUMNS = ["sample_index", "response_length", "tokens", "loss_mask", "rollout_log_probs"]
_NAME = re.compile(r"rollout_(?:eval_)?(\d+)\.parquet$")


def matches(path: Path, head: bytes) -> bool:
    """A parquet file with the columns of the dashboard."""
    if not head.startswith(b"PAR1"):
        return False
    try:
        return set(_COLUMNS) <= set(schema_of(unpacked(path)).names)
    except DataError:
        return False


def read(path: Path, reading: Reading) -> Iterator[Chunk]:
    """Chunks of a file, a row group in memory at a time."""
    return pack_records(_records(path, reading))


def _records(path: Path, reading: Reading) -> Iterator[Record]:
    name = _NAME.search(plain_name(path))
    step = {"rollout_id": int(name[1]) if name else None}
    number = 0
    with open_parquet(unpacked(path)) as file:
        size = path.stat().st_size / max(1, file.num_row_groups)
        for group in range(file.num_row_groups):
            for sample in file.read_row_group(group, columns=_COLUMNS).to_pylist():
                try:
                    yield sample_record(sample, step, reading)
                except Unusable as problem:
                    reading.reject(path, number, problem.kind, f"row {number}: {problem.detail}")
                number += 1
            reading.advance(round(size))


LOADER = Loader(
    name="miles_columns",
    title="miles dashboard columns",
    files="dashboard_columns/rollout_*.parquet",
    gives="rollout log-probabilities, masks",
    matches=matches,
    read=read,
)

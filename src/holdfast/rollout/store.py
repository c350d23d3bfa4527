"""The rollout store: one parquet row per sequence, a column per field of `Rollout`, read back as a stream.

zstd with byte-stream split for floats: about 13 bytes a token with both log-probabilities, a sixth of JSON Lines.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from holdfast.errors import DataError
from holdfast.types import Rollout

SCHEMA_VERSION = 1
VERSION_KEY = b"holdfast_rollouts"
"""Of the metadata of every file."""
_RUN_KEY = b"holdfast_run"
_TYPES = {
    "tuple[int, ...]": pa.list_(pa.int32()),
    "tuple[float, ...]": pa.list_(pa.float32()),
    "tuple[bool, ...]": pa.list_(pa.bool_()),
    "tuple[str, ...]": pa.list_(pa.string()),
    "int": pa.int64(),
    "float": pa.float32(),
    "str": pa.string(),
    "Mapping[str, Any]": pa.string(),
}
_FIELDS = [(f.name, str(f.type).removesuffix(" | None")) for f in dataclasses.fields(Rollout)]
SCHEMA = pa.schema(
    [pa.field(name, _TYPES[kind]) for name, kind in _FIELDS], metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()}
)
_FLOAT_LISTS = [f"{name}.list.element" for name, kind in _FIELDS if kind == "tuple[float, ...]"]


def write_rollouts(
    path: Path | str, rollouts: Iterable[Rollout], rows_per_group: int = 1024, run: str | None = None
) -> int:
    """Write rollouts to one parquet file, in bounded memory; returns how many there were.

    The file appears under its name only when it is complete. `run` names the run, for readers of many files.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    count, pending = 0, []
    options: dict[str, Any] = {
        "compression": "zstd",
        "use_dictionary": ["environment", "finish_reason", "mask_reason", "prompt_text"],
        "use_byte_stream_split": _FLOAT_LISTS,
    }
    schema = SCHEMA if run is None else SCHEMA.with_metadata((SCHEMA.metadata or {}) | {_RUN_KEY: run.encode()})
    with pq.ParquetWriter(temporary, schema, **options) as writer:
        for rollout in rollouts:
            pending.append(_row(rollout))
            count += 1
            if len(pending) == rows_per_group:
                writer.write_table(_table(pending, schema))
                pending = []
        if pending:
            writer.write_table(_table(pending, schema))
    temporary.replace(path)
    return count


def read_rollouts(path: Path | str, rows_per_batch: int = 1024) -> Iterator[Rollout]:
    """The rollouts of one file, a batch of rows in memory at a time; columns the file lacks are None.

    Raises:
        DataError: not a parquet file of rollouts, or one of a newer schema.
    """
    with open_rollouts(path) as file:
        known = [name for name, _ in _FIELDS if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=rows_per_batch, columns=known):
            columns = {name: batch.column(name).to_pylist() for name in known}
            for index in range(batch.num_rows):
                yield rollout_of({name: values[index] for name, values in columns.items()})


@contextmanager
def open_rollouts(path: Path | str | io.BytesIO) -> Iterator[pq.ParquetFile]:
    """A parquet file of rollouts; whatever Arrow finds wrong with it, now or while it is read, is a DataError."""
    try:
        with pq.ParquetFile(path) as file:
            _check_version(path, file.schema_arrow)
            yield file
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a complete parquet file: {error}") from error


def run_id(path: Path | str) -> str | None:
    """The run that a file of rollouts says it is of; None where it says nothing, or is no parquet file."""
    try:
        name = (pq.read_schema(path).metadata or {}).get(_RUN_KEY)
    except (pa.ArrowException, OSError):
        return None
    return None if name is None else name.decode(errors="replace")


def _check_version(path: Path | str | io.BytesIO, schema: pa.Schema) -> None:
    version = (schema.metadata or {}).get(VERSION_KEY)
    if version is None or "response_ids" not in schema.names:
        raise DataError(f"{path} is parquet, but not of Holdfast rollouts (no {VERSION_KEY.decode()} version)")
    if int(version) > SCHEMA_VERSION:
        raise DataError(f"{path} has rollout schema {int(version)}, this version reads up to {SCHEMA_VERSION}: upgrade")


def _row(rollout: Rollout) -> dict[str, Any]:
    row = {name: getattr(rollout, name) for name, _ in _FIELDS}
    row["extra"] = json.dumps(dict(rollout.extra)) if rollout.extra else None
    return row


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.table({name: [row[name] for row in rows] for name, _ in _FIELDS}, schema=schema)


def rollout_of(row: dict[str, Any]) -> Rollout:
    """The rollout that a row holds."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    values["extra"] = json.loads(values["extra"]) if values.get("extra") else {}
    return Rollout(**values)

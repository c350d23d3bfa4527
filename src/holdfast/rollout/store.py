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

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from holdfast.errors import DataError
from holdfast.rollout.footer import row_groups
from holdfast.types import Rollout

SCHEMA_VERSION = 1
VERSION_KEY = b"holdfast_rollouts"
"""Of the metadata of every file."""
_RUN_KEY = b"holdfast_run"
LONGEST_ROW = 1 << 22
"""Entries of one row's field, several times those of a million-token context; each may take a hundred bytes."""
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
        "write_page_checksum": True,
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
    """A parquet file of rollouts; whatever is wrong with it, now or while it is read, is a DataError."""
    with open_parquet(path) as file:
        _check_version(path, file.schema_arrow)
        yield file


@contextmanager
def open_parquet(path: Path | str | io.BytesIO) -> Iterator[pq.ParquetFile]:
    """A parquet file of anybody's, none of whose rows fills the memory.

    Raises:
        DataError: a row has more than LONGEST_ROW entries, or Arrow finds the file damaged, now or while it is read.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _refuse_giants(path, file)
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a complete parquet file: {error}") from error


def _refuse_giants(path: Path | str | io.BytesIO, file: pq.ParquetFile) -> None:
    """Kilobytes on disk can be gigabytes in memory: a million zeros are stored as one zero and a count."""
    for group, told in enumerate(row_groups(path)):
        rows = told.rows
        for column, values in told.values:  # at least one value per row, empty ones too
            if values - rows < LONGEST_ROW:
                continue
            if values > LONGEST_ROW * rows or _longest(file, group, column, rows, values) > LONGEST_ROW:
                raise DataError(
                    f"{path} has a row with more than {LONGEST_ROW:,} entries in {column}: no rollout is that long, "
                    "and it would fill the memory"
                )


def _longest(file: pq.ParquetFile, group: int, column: str, rows: int, values: int) -> int:
    """Entries of the longest row of one column; a part of the column is in memory at a time."""
    some = max(1, rows * LONGEST_ROW // values)
    longest = 0
    for batch in file.iter_batches(some, row_groups=[group], columns=[column]):
        array, ends = batch.column(0), np.arange(batch.num_rows + 1)
        while isinstance(array, pa.ListArray | pa.LargeListArray):
            ends, array = array.offsets.to_numpy()[ends], array.values
        longest = max(longest, int(np.diff(ends).max(initial=0)))
    return longest


def schema_of(path: Path | str | io.BytesIO) -> pa.Schema:
    """The columns of a parquet file; raises DataError for a damaged one."""
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a complete parquet file: {error}") from error


def run_id(path: Path | str) -> str | None:
    """The run that a file of rollouts says it is of; None where it says nothing, or is no parquet file."""
    try:
        name = (schema_of(path).metadata or {}).get(_RUN_KEY)
    except DataError:
        return None
    return None if name is None else name.decode(errors="replace")


def _check_version(path: Path | str | io.BytesIO, schema: pa.Schema) -> None:
    version = (schema.metadata or {}).get(VERSION_KEY)
    if version is None or not version.isdigit() or "response_ids" not in schema.names:
        raise DataError(f"{path} is parquet, but not of Holdfast rollouts (no {VERSION_KEY.decode()} version)")
    if int(version) > SCHEMA_VERSION:
        raise DataError(f"{path} has rollout schema {int(version)}, this version reads up to {SCHEMA_VERSION}: upgrade")
    if "prompt_ids" not in schema.names:
        raise DataError(f"{path} has no prompt_ids: write them, empty ones where they are not known")
    for name in set(schema.names) & set(SCHEMA.names):
        found, wanted = schema.field(name).type, SCHEMA.field(name).type
        if not _same_kind(found, wanted):
            raise DataError(f"{path}: column {name} is {found}, and rollouts have {wanted} there: write it as that")


def _same_kind(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether one converts to the other and means the same: other widths, whole numbers for real ones."""
    if pa.types.is_null(found):
        return True
    if pa.types.is_list(wanted):
        listed = pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
        return listed and _same_kind(found.value_type, wanted.value_type)
    if pa.types.is_dictionary(found):
        return _same_kind(found.value_type, wanted)
    if pa.types.is_floating(wanted):
        return pa.types.is_floating(found) or pa.types.is_integer(found)
    kinds = (pa.types.is_integer, pa.types.is_boolean)
    texts = pa.types.is_string(wanted) and (pa.types.is_string(found) or pa.types.is_large_string(found))
    return texts or any(kind(found) and kind(wanted) for kind in kinds)


def as_stored(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch's columns in the types of SCHEMA."""
    wanted = pa.schema([SCHEMA.field(name) for name in batch.schema.names])
    return batch if batch.schema.equals(wanted) else batch.cast(wanted)


def _row(rollout: Rollout) -> dict[str, Any]:
    row = {name: getattr(rollout, name) for name, _ in _FIELDS}
    row["extra"] = json.dumps(dict(rollout.extra)) if rollout.extra else None
    return row


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.table({name: [row[name] for row in rows] for name, _ in _FIELDS}, schema=schema)


def rollout_of(row: dict[str, Any]) -> Rollout:
    """The rollout that a row holds."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    try:
        values["extra"] = json.loads(values["extra"]) if values.get("extra") else {}
    except (ValueError, RecursionError) as error:
        raise DataError(f"the field extra of a rollout is no JSON ({error}): {values['extra'][:80]!r}") from None
    return Rollout(**values)

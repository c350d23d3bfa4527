"""Holdfast's own parquet, straight from Arrow's memory into columns: no Python object per token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from holdfast.audit.read.columns import (
    CHUNK_TOKENS,
    NUMBER_COLUMNS,
    TEXT_FIELDS,
    TOKEN_COLUMNS,
    WORD_COLUMNS,
    Chunk,
    Column,
    hash_prompts,
    missing_value,
)
from holdfast.audit.read.loaders.loader import Loader
from holdfast.audit.read.raw.compressed import unpacked
from holdfast.audit.read.reading import Reading
from holdfast.errors import DataError
from holdfast.rollout.footer import row_groups
from holdfast.rollout.store import VERSION_KEY, as_stored, open_rollouts, rollout_of, schema_of
from holdfast.types import BOUNDS, Rollout, possible_bounds

_MEASURED = ("prompt_ids", *TOKEN_COLUMNS, *NUMBER_COLUMNS, *WORD_COLUMNS)
_ROWS = 4096
MAGIC = b"PAR1"


def matches(path: Path, head: bytes) -> bool:
    """A parquet file of ours, by its version; a damaged one is taken for one, and said to be damaged on reading."""
    if head[:4] != MAGIC:
        return False
    try:
        return VERSION_KEY in (schema_of(unpacked(path)).metadata or {})
    except DataError:
        return True


def read(path: Path, reading: Reading) -> Iterator[Chunk]:
    """Chunks of a file; a sequence whose fields differ in length, or whose bounds cannot be, is left out by name."""
    source = unpacked(path)
    with open_rollouts(source) as file:
        columns = [name for name in _MEASURED if name in file.schema_arrow.names]
        share = path.stat().st_size / max(1, file.metadata.num_rows)
        first = 0
        for stored in file.iter_batches(batch_size=_rows_per_batch(source), columns=columns, use_threads=True):
            batch = as_stored(stored)
            for start in range(0, batch.num_rows, _ROWS):
                part = batch.slice(start, _ROWS)
                yield _chunk(path, first + start, part, reading)
                reading.advance(round(share * part.num_rows))
            first += batch.num_rows


def ends_as_parquet(path: Path) -> bool:
    """Whether a file is complete if it is parquet: one that is being written lacks its last four bytes."""
    try:
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                return True
            size = file.seek(0, 2)
            file.seek(max(4, size - 4))
            return file.read() == MAGIC
    except OSError:
        return False


def _rows_per_batch(source: Path | BytesIO) -> int:
    """Rows that hold about CHUNK_TOKENS tokens."""
    groups = row_groups(source)
    values = sum(count for group in groups for name, count in group.values if name.startswith("response_ids"))
    return max(1, round(CHUNK_TOKENS * sum(group.rows for group in groups) / max(1, values)))


def _chunk(path: Path, first: int, batch: pa.RecordBatch, reading: Reading) -> Chunk:
    rows = np.arange(batch.num_rows)
    for faults in (_unequal_lengths, _impossible_bounds):
        found = faults(batch)
        for place, (kind, detail) in sorted(found.items()):
            reading.reject(path, first + int(rows[place]), kind, detail)
        if found:
            good = np.delete(np.arange(batch.num_rows), [*found])
            batch, rows = batch.take(pa.array(good)), rows[good]
    lengths = _lengths(batch.column("response_ids"))
    tokens, numbers, words, present = {}, {}, {}, {}
    for name in batch.schema.names:
        column = batch.column(name)
        if name == "prompt_ids" or column.null_count == len(column):
            continue
        present[name] = ~_nulls(column)
        if name in TOKEN_COLUMNS:
            tokens[name] = _flat(column, lengths, present[name], TOKEN_COLUMNS[name])
        elif name in NUMBER_COLUMNS:
            kind = NUMBER_COLUMNS[name]
            numbers[name] = column.fill_null(missing_value(kind)).to_numpy(zero_copy_only=False).astype(kind)
        else:
            words[name] = np.array(column.to_pylist(), dtype=object)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    prompts = batch.column("prompt_ids")
    hashes = hash_prompts(prompts.flatten().to_numpy(zero_copy_only=False), _lengths(prompts))

    def keep(index: int) -> _Kept:
        return _Kept({n: _own(batch.column(n)[index]) for n in batch.schema.names}, path, first + int(rows[index]))

    def prompt(index: int) -> Column:
        return prompts[index].values.to_numpy(zero_copy_only=False)

    return Chunk(offsets, tokens, numbers, words, present, hashes, lambda index: keep(index)(), keep, prompt=prompt)


def _own(value: pa.Scalar) -> Any:
    """A field of one row that holds on to no other: numbers as an array, where none is missing."""
    values = value.values if pa.types.is_list(value.type) and value.is_valid else None
    if values is None or values.null_count or not pa.types.is_primitive(values.type):
        return value.as_py()
    return np.array(values.to_numpy(zero_copy_only=False))


@dataclass(frozen=True)
class _Kept:
    """One row on its own; `whole` reads its texts from the file too."""

    fields: Mapping[str, Any]
    path: Path
    number: int

    def __call__(self) -> Rollout:
        return rollout_of(self._row())

    def _row(self) -> dict[str, Any]:
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in self.fields.items()}

    def whole(self) -> Rollout:
        try:
            texts = texts_of(self.path, self.number)
            told = texts.get("token_texts")
            if told is not None and (len(told) != len(self.fields["response_ids"]) or None in told):
                texts["token_texts"] = None
            return rollout_of(self._row() | texts)
        except DataError:  # the file has changed since, or they are damaged; all that is measured is here
            return self()


def texts_of(path: Path, row: int) -> dict[str, Any]:
    """The text fields of one row, read on their own: they are most of a file and only a few are shown."""
    with open_rollouts(unpacked(path)) as file:
        names = [name for name in (*TEXT_FIELDS, "extra") if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < rows:
                return file.read_row_group(group, columns=names).slice(row, 1).to_pylist()[0]
            row -= rows
    return {}


def _unequal_lengths(batch: pa.RecordBatch) -> dict[int, tuple[str, str]]:
    """Kind and detail of each row with a token field of another length than its response."""
    lengths, found = _lengths(batch.column("response_ids")), {}
    for name in ("prompt_ids", "response_ids"):
        column = batch.column(name)
        holes = np.diff(np.concatenate([[0], np.cumsum(_nulls(column.flatten()))])[_ends(column)])
        for row in np.flatnonzero(_nulls(column) | (holes > 0)).tolist():
            found[row] = "missing field", f"{name}, or an entry of it"
    for name in TOKEN_COLUMNS:
        if name in batch.schema.names:
            column = batch.column(name)
            other = _lengths(column)
            for row in np.flatnonzero((other != lengths) & ~_nulls(column)).tolist():
                found.setdefault(
                    row, ("lengths differ", f"{name} has {other[row]} entries, response_ids {lengths[row]}")
                )
    return found


def _impossible_bounds(batch: pa.RecordBatch) -> dict[int, tuple[str, str]]:
    """Kind and detail of each row whose bounds of divergences `Rollout` would refuse."""
    given = {name: ~_nulls(batch.column(name)) for name in BOUNDS if name in batch.schema.names}
    if not given:
        return {}
    some, every = np.any([*given.values()], 0), np.all([*given.values()], 0) & (len(given) == len(BOUNDS))
    found: dict[int, tuple[str, str]] = {}
    for row in np.flatnonzero(some & ~every).tolist():
        found[row] = "missing field", f"{', '.join(BOUNDS)} come together"
    if not every.any():
        return found
    lengths = _lengths(batch.column("response_ids"))
    sequence, starts = np.repeat(np.arange(len(lengths)), lengths), np.cumsum(lengths) - lengths
    flat = {name: _flat(batch.column(name), lengths, given[name], TOKEN_COLUMNS[name]) for name in BOUNDS}
    sampled = every[sequence]
    if "response_mask" in batch.schema.names:
        column = batch.column("response_mask")
        sampled &= _flat(column, lengths, ~_nulls(column), np.dtype(np.bool_)) | _nulls(column)[sequence]
    for name, possible in possible_bounds(flat).items():
        wrong = np.flatnonzero(sampled & ~possible)
        for row, at in zip(*np.unique(sequence[wrong], return_index=True), strict=True):
            token = wrong[at]
            detail = f"{name} is {flat[name][token]:g} at token {token - starts[row]}, allowed are {BOUNDS[name]}"
            found.setdefault(int(row), ("number out of range", detail))
    return found


def _nulls(column: pa.Array) -> Column:
    return column.is_null().to_numpy(zero_copy_only=False)


def _ends(column: pa.ListArray) -> Column:
    """Where each row begins in the flat values, and where the last ends."""
    return np.concatenate([[0], np.cumsum(_lengths(column))])


def _lengths(column: pa.ListArray) -> Column:
    return np.diff(column.offsets.to_numpy()) * ~_nulls(column)


def _flat(column: pa.ListArray, lengths: Column, present: Column, dtype: np.dtype) -> Column:
    values = column.flatten()
    if values.null_count:
        values = values.fill_null(missing_value(dtype) if dtype.kind != "b" else False)
    flat = values.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
    if present.all():
        return flat
    out = np.full(int(lengths.sum()), missing_value(dtype), dtype)
    out[np.repeat(present, lengths)] = flat
    return out


LOADER = Loader(
    name="holdfast",
    title="Holdfast",
    files="*.parquet (the trainer's rollouts/step_*.parquet, both plug-ins, `holdfast convert`)",
    gives="everything: both log-probabilities, masks, exact KL, bounds of KL and TV, entropy, weight versions, texts",
    matches=matches,
    read=read,
)

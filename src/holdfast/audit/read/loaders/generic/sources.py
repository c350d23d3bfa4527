"""JSON Lines, JSON, parquet and torch.save of padded tensors under anyone's column names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from holdfast.audit.read.columns import Chunk
from holdfast.audit.read.loaders.generic.rows import TOKEN_IDS, no_rows, record_of_row, rows_in
from holdfast.audit.read.loaders.loader import Loader
from holdfast.audit.read.raw.compressed import head_of, unpacked
from holdfast.audit.read.raw.fields import Unusable
from holdfast.audit.read.raw.fields import mask as mask_of
from holdfast.audit.read.raw.jsonl import is_lines, read_jsonl, read_objects
from holdfast.audit.read.raw.names import ALIASES, find
from holdfast.audit.read.raw.records import Record, pack_records
from holdfast.audit.read.raw.torch_files import ZIP, load, plain
from holdfast.audit.read.reading import Reading
from holdfast.errors import DataError
from holdfast.rollout import store
from holdfast.rollout.store import open_parquet

_ROWS = 256
_BATCHES = ("batch", "non_tensor_batch", "meta_info", "rollout_data", "data")
"""Dictionaries inside a saved one whose entries count as its own."""


def generic_loader(columns: Mapping[str, str]) -> Loader:
    """The loader that knows every alias, and these names of a user's own before them."""
    names = {columns[ours].split(".")[-1] for ours in TOKEN_IDS if ours in columns}
    names |= {alias for ours in TOKEN_IDS for alias in ALIASES[ours]}

    def matches(path: Path, head: bytes) -> bool:
        return _matches(path, head, names)

    return Loader(
        name="generic",
        title="anybody's columns",
        files="*.jsonl, *.json, *.parquet, *.pt (tensors and plain values) with token ids under a known name, or --map",
        gives="whatever it has: both log-probabilities, masks, advantages, rewards",
        matches=matches,
        read=read,
    )


def _matches(path: Path, head: bytes, names: set[str]) -> bool:
    """Token ids under one of these names."""
    if head.startswith(b"PAR1"):
        schema = schema_of(path)
        return schema is not None and any(
            name in names and _holds_lists(schema.field(name).type) for name in schema.names
        )
    if head.startswith(ZIP):  # a name as pickle writes it, with its length before it
        return any(b"X" + len(name).to_bytes(4, "little") + name.encode() in head for name in names)
    start = head.lstrip()[:1]
    keys = b"|".join(re.escape(name.encode()) for name in names)
    return start in (b"{", b"[") and bool(re.search(rb'"(' + keys + rb')"\s*:\s*\[\s*[\d\]]', head))


def _holds_lists(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def schema_of(path: Path) -> pa.Schema | None:
    """The columns of a parquet file, None where it is damaged."""
    try:
        return store.schema_of(unpacked(path))
    except DataError:
        return None


def read(path: Path, reading: Reading) -> Iterator[Chunk]:
    """Chunks of a file; a file of tensors is in memory whole."""
    start = head_of(path, 4)
    if start == ZIP:
        return pack_records(_from_tensors(path, reading))
    if start == b"PAR1":
        return pack_records(_from_parquet(path, reading))

    def decode(line: Mapping[str, Any]) -> Iterator[Record]:
        rows = list(rows_in(line, reading.columns))
        if not rows:
            raise no_rows(line, reading.columns)
        return iter([record_of_row(row, layers, reading) for row, layers in rows])

    return read_jsonl(path, reading, decode) if is_lines(path) else read_objects(path, reading, decode)


def _from_parquet(path: Path, reading: Reading) -> Iterator[Record]:
    number = 0
    with open_parquet(unpacked(path)) as file:
        share = path.stat().st_size / max(1, file.metadata.num_rows)
        for batch in file.iter_batches(batch_size=_ROWS):
            for row in batch.to_pylist():
                yield from _one(path, number, row, reading, None)
                number += 1
            reading.advance(round(share * batch.num_rows))


def _from_tensors(path: Path, reading: Reading) -> Iterator[Record]:
    payload = load(path, reading)
    for name in _BATCHES:
        if isinstance(payload.get(name), Mapping):
            payload = {**payload, **payload[name]}
    try:
        columns = {str(name): plain(value) for name, value in payload.items()}
    except Unusable as problem:
        raise DataError(f"{path}: {problem}") from None
    found = next((f for name in TOKEN_IDS if (f := find(columns, name, reading.columns)) is not None), None)
    if found is None or not hasattr(found[1], "__len__") or getattr(found[1], "ndim", 2) < 1:
        raise DataError(f"{path}: {no_rows(columns, reading.columns)}")
    count, pad = len(found[1]), _padding(columns, reading)
    for number in range(count):
        yield from _one(
            path, number, {name: _cell(value, number, count) for name, value in columns.items()}, reading, pad
        )
    reading.advance(path.stat().st_size)


def _one(path: Path, number: int, row: Mapping[str, Any], reading: Reading, pad: int | None) -> Iterator[Record]:
    try:
        rows = list(rows_in(row, reading.columns))
        if not rows:
            raise no_rows(row, reading.columns)
        records = [record_of_row(inner, layers, reading, pad) for inner, layers in rows]
    except Unusable as problem:
        reading.reject(path, number, problem.kind, f"row {number}: {problem.detail}")
    else:
        yield from records


def _cell(value: Any, number: int, count: int) -> Any:
    """Entry of a row; what has not as many entries as there are rows belongs to all of them."""
    if isinstance(value, np.ndarray) and value.ndim and len(value) == count:
        return plain(value[number])
    if isinstance(value, list) and len(value) == count:
        return plain(value[number])
    return value


def _padding(columns: Mapping[str, Any], reading: Reading) -> int | None:
    """The id that fills up the rows: what stands most often behind the last token of a response's mask.

    -1, which is no id, where the mask reaches the end of every row.
    """
    responses = find(columns, "response_ids", reading.columns) or find(columns, "token_ids", reading.columns)
    mask = find(columns, "response_mask", reading.columns)
    if responses is None or not isinstance(responses[1], np.ndarray) or responses[1].ndim != 2:
        return None
    if mask is None or not isinstance(mask[1], np.ndarray) or mask[1].ndim != 2 or len(mask[1]) != len(responses[1]):
        return None
    behind: list[np.ndarray] = []
    for ids, row in zip(responses[1], mask[1], strict=True):
        try:
            own = np.flatnonzero(mask_of(row, "mask"))
        except Unusable:
            continue
        behind.append(
            ids[len(ids) - len(row) + (own[-1] + 1 if len(own) else 0) :] if len(row) <= len(ids) else ids[:0]
        )
    filling = np.concatenate(behind) if behind else np.array([])
    if not len(filling) or filling.dtype.kind not in "iu":
        return -1
    values, counts = np.unique(filling, return_counts=True)
    return int(values[counts.argmax()])

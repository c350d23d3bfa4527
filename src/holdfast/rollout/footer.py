"""How many values each column of a parquet file holds, read from its footer in Python.

Arrow ends the process where the statistics of a column are damaged (an exception that nothing may catch), once it is
asked for the column's metadata; it says so like any other error where the column is read. So what has to be known
before reading is read here: Thrift's compact protocol (Apache Thrift, doc/specs/thrift-compact-protocol.md), and of the
metadata of Parquet (parquet-format, parquet.thrift) rows and values alone.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.errors import DataError

MAGIC = b"PAR1"
DEEPEST = 16
"""Levels of structures in structures; Parquet has six."""
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 11, 12
_ROW_GROUPS, _COLUMNS, _ROWS, _METADATA, _PATH, _VALUES = 4, 1, 3, 3, 3, 5
"""Numbers of fields in parquet.thrift."""


@dataclass(frozen=True)
class RowGroup:
    """`values` has (the column's path, its values, empty ones counted) in the file's order."""

    rows: int
    values: tuple[tuple[str, int], ...]


def row_groups(path: Path | str | io.BytesIO) -> list[RowGroup]:
    """The row groups of a parquet file.

    Raises:
        DataError: no footer, or a damaged one.
    """
    try:
        whole = _Thrift(_footer(path)).struct(0)
        return [_row_group(group) for group in whole[_ROW_GROUPS]]
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise DataError(f"{path} is not a complete parquet file: its footer is damaged ({error})") from error


def _row_group(group: dict[int, Any]) -> RowGroup:
    columns = [column[_METADATA] for column in group.get(_COLUMNS, [])]
    named = [(b".".join(column[_PATH]).decode(errors="replace"), int(column[_VALUES])) for column in columns]
    if group[_ROWS] < 0 or any(values < 0 for _, values in named):
        raise ValueError("a negative number of rows or values")
    return RowGroup(int(group[_ROWS]), tuple(named))


def _footer(path: Path | str | io.BytesIO) -> bytes:
    if isinstance(path, io.BytesIO):
        return _last(path, path.getbuffer().nbytes)
    with Path(path).open("rb") as file:
        return _last(file, Path(path).stat().st_size)


def _last(file: Any, size: int) -> bytes:
    before = file.tell()
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or length > size - 12:
        raise ValueError("no length and mark at its end")
    file.seek(size - 8 - length)
    found = file.read(length)
    file.seek(before)
    return found


class _Thrift:
    """A reader of one structure; fields by their numbers."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def struct(self, depth: int) -> dict[int, Any]:
        if depth > DEEPEST:
            raise ValueError("structures without end")
        found, number = {}, 0
        while True:
            head = self.byte()
            if head == _STOP:
                return found
            number = number + (head >> 4) if head >> 4 else self.whole()
            kind = head & 15
            found[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self.value(kind, depth)

    def value(self, kind: int, depth: int) -> Any:
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            return self.list(depth + 1)
        if kind == _MAP:
            return self.map(depth + 1)
        if kind == _BINARY:
            return self.bytes(self.varint())
        if kind == _DOUBLE:
            return struct.unpack("<d", self.bytes(8))[0]
        if kind in (_TRUE, _FALSE, _BYTE):
            return self.byte()
        if kind > _STRUCT:
            raise ValueError(f"type {kind}")
        return self.whole()

    def list(self, depth: int) -> list[Any]:
        head = self.byte()
        count = head >> 4 if head >> 4 < 15 else self.varint()
        self.check(count)
        return [self.value(head & 15, depth) for _ in range(count)]

    def map(self, depth: int) -> dict[Any, Any]:
        count = self.varint()
        self.check(count)
        kinds = self.byte() if count else 0
        return {i: (self.value(kinds >> 4, depth), self.value(kinds & 15, depth)) for i in range(count)}

    def check(self, count: int) -> None:
        """Everything takes a byte at least, so no more can follow than bytes are left."""
        if count > len(self.data) - self.place:
            raise ValueError("more than it has room for")

    def byte(self) -> int:
        self.place += 1
        return self.data[self.place - 1]

    def bytes(self, count: int) -> bytes:
        self.check(count)
        self.place += count
        return self.data[self.place - count : self.place]

    def varint(self) -> int:
        found, shift = 0, 0
        while True:
            byte = self.byte()
            found |= (byte & 127) << shift
            if byte < 128:
                return found
            shift += 7
            if shift > 63:
                raise ValueError("a number without end")

    def whole(self) -> int:
        raw = self.varint()
        return (raw >> 1) ^ -(raw & 1)

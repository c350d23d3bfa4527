"""The wire format of protocol buffers, as far as numbers and texts need it: key and value of every field."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

Value = int | bytes


class Damaged(ValueError):
    """Bytes that are no message."""


def fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """(field number, value) of a message: an int of a varint, the bytes of all else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind, name = key & 7, key >> 3
        if kind == 0:
            value, at = _varint(data, at)
            yield name, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise Damaged(f"wire type {kind} at byte {at}")
        if at + size > len(data):
            raise Damaged(f"a field of {size} bytes with {len(data) - at} left")
        yield name, data[at : at + size]
        at += size


def first(message: Iterable[tuple[int, Value]], name: int) -> Value | None:
    """The value of the first field of this number."""
    return next((value for key, value in message if key == name), None)


def number(value: Value | None, kind: str) -> float | None:
    """A float ("f") or a double ("d") that is held in exactly its bytes."""
    size = struct.calcsize(kind)
    return struct.unpack(f"<{kind}", value)[0] if isinstance(value, bytes) and len(value) == size else None


def text(value: Value | None) -> str:
    """Text of a field; empty where it has none."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at, value = at + 1, value | (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise Damaged(f"a number without an end at byte {at}")

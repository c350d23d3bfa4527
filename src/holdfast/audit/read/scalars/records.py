"""Scalars from the two binary logs: TensorBoard's event files and W&B's offline runs, each with its checksums.

A TensorBoard file is a sequence of TFRecords: length (8 bytes, little-endian), its masked CRC-32C, a serialised Event,
the Event's masked CRC-32C. A .wandb file is LevelDB's log: blocks of 32 KiB of records (CRC-32, length 2 bytes, type 1
byte), a record in one piece or first-middle-last, after a header of 7 bytes; each holds a serialised Record.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from holdfast.audit.read.raw.compressed import open_unpacked
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.scalars.protobuf import Damaged, fields, first, number, text
from holdfast.audit.read.scalars.rows import Row, number_of

WANDB = b":W&B"
_BLOCK, _HEADER = 1 << 15, 7
_LARGEST = 1 << 28
"""Bytes of a record: a longer one is damage."""
_CHECKED = 1 << 12
"""Bytes up to which a record's own checksum is computed; longer ones hold pictures and texts, which are passed over."""


def is_events(head: bytes) -> bool:
    """Whether a file begins with the length of a TFRecord and its checksum."""
    return len(head) >= 16 and masked_crc(head[:8]) == struct.unpack("<I", head[8:12])[0]


def event_rows(path: Path, reading: Reading) -> Iterator[Row]:
    """One row per Event with scalars; up to the place where a file is cut off or damaged, which is counted."""
    file, _ = open_unpacked(path)
    with file:
        done = records = 0
        while head := file.read(12):
            problem = None
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else 0
            if len(head) < 12:
                problem = "cut off in mid-record"
            elif masked_crc(head[:8]) != struct.unpack("<I", head[8:])[0] or length > _LARGEST:
                problem = "wrong checksum"
            body = b"" if problem else file.read(length + 4)
            if not problem and len(body) < length + 4:
                problem = "cut off in mid-record"
            if not problem and length <= _CHECKED and masked_crc(body[:-4]) != struct.unpack("<I", body[-4:])[0]:
                problem = "wrong checksum"
            if problem:
                reading.reject(path, records, problem, f"record {records + 1}, at byte {done:,}: read up to there")
                break
            done, records = done + 16 + length, records + 1
            try:
                if row := _event(body[:-4]):
                    yield row
            except Damaged as damage:
                reading.reject(path, records, "damaged event", str(damage))
    reading.advance(path.stat().st_size)


def _event(data: bytes) -> Row | None:
    """Numbers of an Event {step: 2, summary: 5 {value: 1 {tag: 1, simple_value: 2, tensor: 8}}}; None without any."""
    event = list(fields(data))
    row = {}
    for summary in (value for key, value in event if key == 5 and isinstance(value, bytes)):
        for key, value in fields(summary):
            if key != 1 or not isinstance(value, bytes):
                continue
            parts = dict(fields(value))
            scalar = number(parts.get(2), "f")
            if scalar is None and isinstance(parts.get(8), bytes):
                scalar = _tensor(parts[8])
            if scalar is not None:
                row[text(parts.get(1))] = scalar
    step = first(event, 2)
    return {"step": float(step if isinstance(step, int) else 0), **row} if row else None


def _tensor(data: bytes | int) -> float | None:
    """The value of a TensorProto {dtype: 1, tensor_shape: 2, content: 4, float_val: 5, double_val: 6} of one number."""
    parts = dict(fields(data)) if isinstance(data, bytes) else {}
    kind = {1: "f", 2: "d"}.get(parts.get(1))  # pyright: ignore[reportArgumentType]
    if kind is None:
        return None
    held = parts.get(4) or parts.get(5 if kind == "f" else 6)
    return number(held, kind)


def masked_crc(data: bytes) -> int:
    """CRC-32C as TFRecords mask it: rotated right by 15, plus a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 255] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _castagnoli() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_TABLE = _castagnoli()


def wandb_rows(path: Path, reading: Reading) -> Iterator[Row]:
    """One row per step of the history in a .wandb file, up to the place where it is cut off, which is counted."""
    for records, data in enumerate(_pieces(path, reading)):
        try:
            for history in (value for key, value in fields(data) if key == 2 and isinstance(value, bytes)):
                if row := _history(history):
                    yield row
        except Damaged as damage:
            reading.reject(path, records, "damaged record", str(damage))
    reading.advance(path.stat().st_size)


def _history(data: bytes) -> Row | None:
    """HistoryRecord {item: 1 {key: 1, nested_key: 2, value_json: 16}, step: 2 {num: 1}}."""
    row = {}
    for key, value in fields(data):
        if key == 2 and isinstance(value, bytes) and isinstance(step := first(fields(value), 1), int):
            row.setdefault("_step", float(step))
        if key != 1 or not isinstance(value, bytes):
            continue
        parts = list(fields(value))
        name = text(first(parts, 1)) or "/".join(text(part) for number_, part in parts if number_ == 2)
        try:
            held = number_of(json.loads(text(first(parts, 16)) or "null"))
        except ValueError:
            continue
        if held is not None and name:
            row[name] = held
    return row if len(row) > 1 else None


def _pieces(path: Path, reading: Reading) -> Iterator[bytes]:
    """Whole records of a LevelDB log."""
    held, records = b"", 0
    file, _ = open_unpacked(path)
    with file:
        at = len(file.read(_HEADER))
        while True:
            left = _BLOCK - at % _BLOCK
            if left < _HEADER:
                at += len(file.read(left))
                continue
            head = file.read(_HEADER)
            if not head.strip(b"\0"):
                return
            crc, size, kind = struct.unpack("<IHB", head) if len(head) == _HEADER else (0, 0, 0)
            body = file.read(size)
            broken = "cut off in mid-record" if len(head) < _HEADER or len(body) < size else ""
            if not broken and zlib.crc32(bytes([kind]) + body) != crc:
                broken = "wrong checksum"
            if broken:
                reading.reject(path, records, broken, f"record {records + 1}, at byte {at:,}: read up to there")
                return
            at += _HEADER + size
            held = body if kind in (1, 2) else held + body
            if kind in (1, 4):
                records += 1
                yield held
                held = b""

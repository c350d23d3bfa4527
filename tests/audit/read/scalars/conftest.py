"""Writers of scalar logs as frameworks write them, with the bytes laid out by hand."""

import json
import struct
import zlib

import pytest

from holdfast.audit.read.scalars.records import masked_crc


def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def message(*fields):
    """(number, value) pairs: int, float (32 bits), ("d", double), bytes, str."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        elif isinstance(value, float):
            out += varint(number << 3 | 5) + struct.pack("<f", value)
        elif isinstance(value, tuple):
            out += varint(number << 3 | 1) + struct.pack("<d", value[1])
        else:
            value = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def events(path, rows):
    """A TensorBoard file: a version, then one Event per number."""
    records = [message((1, ("d", 1.0)), (3, "brain.Event:2"))]
    for step, row in rows:
        for name, value in row.items():
            records.append(
                message((1, ("d", 2.0)), (2, step), (5, message((1, message((1, name), (2, float(value)))))))
            )
    data = b""
    for record in records:
        head = struct.pack("<Q", len(record))
        data += head + struct.pack("<I", masked_crc(head)) + record + struct.pack("<I", masked_crc(record))
    path.write_bytes(data)
    return path


def wandb(path, rows, block=1 << 15):
    """A .wandb file: the header, then LevelDB's blocks; records that do not fit are cut into pieces."""
    data = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
    for step, row in rows:
        items = [(1, message((1, name), (16, json.dumps(value)))) for name, value in row.items()]
        record = message((1, step), (2, message(*items, (2, message((1, step))))))
        first = True
        while True:
            left = block - len(data) % block
            if left < 7:
                data += b"\0" * left
                continue
            piece, record = record[: left - 7], record[left - 7 :]
            kind = (1 if first else 4) if not record else (2 if first else 3)
            crc = zlib.crc32(bytes([kind]) + piece)
            data += struct.pack("<IHB", crc, len(piece), kind) + piece
            first = False
            if not record:
                break
    path.write_bytes(data)
    return path


@pytest.fixture
def write_events():
    return events


@pytest.fixture
def write_wandb():
    return wandb

"""gzip and zstd: a packed file read as a stream, told by its first bytes and never by its name."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from holdfast.errors import DataError

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_STRETCH = 1 << 13
"""Bytes unpacked at a time: so many before the place are lost where a packed file is cut off."""
LARGEST_UNPACKED = 1 << 29
"""Bytes of a packed file that is read whole; a few kilobytes can be packed terabytes."""
_SUFFIXES = (".gz", ".gzip", ".zst", ".zstd")


def packing(path: Path) -> str | None:
    """`gzip`, `zstd` or None for a file that is neither."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)


def plain_name(path: Path) -> str:
    """The name that the file has unpacked."""
    return path.name.removesuffix(path.suffix) if path.suffix in _SUFFIXES else path.name


def open_unpacked(path: Path, buffer: int = 1 << 20) -> tuple[BinaryIO, Callable[[], int] | None]:
    """The file's content as a stream, and for a packed file how many of its own bytes are done.

    Raises OSError where the file cannot be opened; so does reading a packed file that is damaged or cut off.
    """
    kind = packing(path)
    if kind is None:
        return path.open("rb", buffering=buffer), None
    file = pa.OSFile(str(path))
    stream = pa.CompressedInputStream(file, kind)
    return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, stream), _STRETCH)), file.tell


def head_of(path: Path, size: int) -> bytes:
    """The first bytes of a file's content; as many as there are and can be read."""
    head = b""
    try:
        stream, _ = open_unpacked(path)
        with stream:
            while len(head) < size and (piece := stream.read(min(_STRETCH, size - len(head)))):
                head += piece
    except (OSError, pa.ArrowException):
        pass
    return head


def unpacked(path: Path) -> Path | io.BytesIO:
    """What a reader that jumps about in a file can open: the file itself, or all of a packed one in memory.

    Raises DataError for a packed file that is damaged or cut off, or larger than LARGEST_UNPACKED.
    """
    if packing(path) is None:
        return path
    try:
        stream, _ = open_unpacked(path)
        with stream:
            content = stream.read(LARGEST_UNPACKED + 1)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} could not be unpacked: {error}") from error
    if len(content) > LARGEST_UNPACKED:
        raise DataError(f"{path} unpacks to more than {LARGEST_UNPACKED / 1e9:.1f} GB in memory: unpack it on disk")
    return io.BytesIO(content)

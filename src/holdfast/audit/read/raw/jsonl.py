"""JSON Lines as a stream: one line in memory at a time, every bad one counted and named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from holdfast.audit.read.columns import Chunk
from holdfast.audit.read.raw.compressed import open_unpacked, plain_name
from holdfast.audit.read.raw.fields import Unusable
from holdfast.audit.read.raw.records import Record, pack_records
from holdfast.audit.read.reading import Reading
from holdfast.errors import DataError

LONGEST_LINE = 1 << 28
"""Bytes; a longer line is skipped instead of filling the memory."""
BUFFER = 1 << 20
LARGEST_FILE = 1 << 29
"""Bytes of a file that is one JSON value."""

Decode = Callable[[Mapping[str, Any]], Iterable[Record]]
Finish = Callable[[], Iterable[Record]]
_FRAMING = (b"data:", b"event:", b"id:", b"retry:", b":")


def read_jsonl(
    path: Path, reading: Reading, decode: Decode, unused: Sequence[str] = (), finish: Finish = tuple
) -> Iterator[Chunk]:
    """Chunks of a file whose every line is one object; `decode` raises Unusable for one that must be left out.

    `unused` names arrays of numbers in the order in which they are written; they are not parsed. `finish` gives the
    records that were not complete before the end of the file. A dump of server-sent events (`data: {…}`) is read too.
    """
    skipped = [f'"{name}":['.encode() for name in unused]
    return pack_records(chain(_records(path, reading, decode, skipped), _last(finish)))


def read_objects(path: Path, reading: Reading, decode: Decode, finish: Finish = tuple) -> Iterator[Chunk]:
    """Chunks of a file that is one JSON object or an array of them; all of it is in memory at once.

    Raises DataError for a file over LARGEST_FILE and for one that is not JSON.
    """
    try:
        file, _ = open_unpacked(path, BUFFER)
        with file:
            text = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise DataError(f"{path} could not be read: {error}") from error
    if len(text) > LARGEST_FILE:
        raise DataError(
            f"{path} has over {LARGEST_FILE / 1e9:.1f} GB in one JSON value, which cannot be streamed: write one "
            f"object a line (jq -c '.[]' {path.name} > {path.stem}.jsonl)"
        )
    try:
        value = parse(text)
    except Unusable as problem:
        raise DataError(f"{path}: {problem}") from None
    values = value if isinstance(value, list) else [value]
    yield from pack_records(chain(_decoded(path, reading, decode, values), _last(finish)))
    reading.advance(path.stat().st_size)


def is_lines(path: Path) -> bool:
    """Whether the first line of a file is an object of its own; the name decides where it is damaged."""
    file, _ = open_unpacked(path)
    with file:
        first = file.readline(1 << 26)
    try:
        return isinstance(parse(payload(first) or b"{}"), dict)
    except Unusable:
        return plain_name(path).endswith(".jsonl")


def _last(finish: Finish) -> Iterator[Record]:
    yield from finish()


def payload(line: bytes) -> bytes:
    """What a line holds beside the framing of server-sent events; empty for lines that are framing alone."""
    line = line.strip()
    if line.startswith(_FRAMING):
        line = line[5:].strip() if line.startswith(b"data:") else b""
    return b"" if line == b"[DONE]" else line


def _decoded(path: Path, reading: Reading, decode: Decode, values: Sequence[Any]) -> Iterator[Record]:
    for number, value in enumerate(values):
        try:
            yield from decode(_object(value))
        except Unusable as problem:
            reading.reject(path, number, problem.kind, f"entry {number + 1}: {problem.detail}")


def _records(path: Path, reading: Reading, decode: Decode, unused: Sequence[bytes]) -> Iterator[Record]:
    for number, line in json_lines(path, reading, unused):
        try:
            yield from decode(line)
        except Unusable as problem:
            reading.reject(path, number, problem.kind, f"line {number + 1}: {problem.detail}")


def json_lines(path: Path, reading: Reading, unused: Sequence[bytes] = ()) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Number and object of every line that holds one; the others are counted and named."""
    for number, line in _lines(path, reading):
        if not (text := payload(line)):
            continue
        try:
            value = _object(parse(_without(text, unused)))
        except Unusable as problem:
            reading.reject(path, number, problem.kind, f"line {number + 1}: {problem.detail}")
        else:
            yield number, value


def _without(line: bytes, unused: Sequence[bytes]) -> bytes:
    """The line with `"name":[…]` as `"name":[]`. Inside a JSON text the quotes are escaped, so no text is touched."""
    pieces, at = [], 0
    for name in unused:
        start = line.find(name, at)
        end = line.find(b"]", start) if start >= 0 else -1
        if end >= 0:
            pieces.append(line[at : start + len(name)])
            at = end
    return b"".join([*pieces, line[at:]]) if pieces else line


def _lines(path: Path, reading: Reading) -> Iterator[tuple[int, bytes]]:
    number = done = 0
    packed = False
    try:
        file, position = open_unpacked(path, BUFFER)
        packed = position is not None
        with file:
            while line := file.readline(LONGEST_LINE):
                size = len(line)
                if size == LONGEST_LINE and not line.endswith(b"\n"):
                    while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                        size += len(rest)
                    size += len(rest)
                    reading.reject(path, number, "line too long", f"line {number + 1} has {size:,} bytes")
                else:
                    yield number, line
                if position is not None:
                    size, done = position() - done, position()
                reading.advance(size)
                number += 1
    except OSError as error:
        if packed and number:
            reading.reject(path, number, "packed file cut off or damaged", f"after {number:,} lines: {error}")
            reading.advance(path.stat().st_size - done)
            return
        raise DataError(f"{path} could not be read: {error}") from error


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Unusable("not an object", f"a {type(value).__name__} where a record belongs")
    return value


def parse(text: bytes) -> Any:
    """The value that JSON text holds, with the NaN and Infinity that Python's writer adds to JSON.

    Raises Unusable and says what is wrong.
    """
    text = text.removeprefix(b"\xef\xbb\xbf")
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if b"NaN" in text or b"Infinity" in text:
            try:
                value = json.loads(text.decode())
                if rb"\ud" in text.lower():  # Python takes half a surrogate pair, which no file can hold
                    json.dumps(value, ensure_ascii=False).encode()
                return value
            except (ValueError, RecursionError):
                pass
        try:
            text.decode()
        except UnicodeDecodeError as broken:
            raise Unusable("invalid UTF-8", f"byte {broken.start}") from None
        if error.pos >= len(text.decode().rstrip()) or not text.rstrip().endswith((b"}", b"]")):
            raise Unusable("cut off in mid-record", f"{len(text):,} bytes without an end") from None
        raise Unusable("not JSON", error.msg) from None

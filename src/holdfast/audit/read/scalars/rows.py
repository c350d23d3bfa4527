"""Rows of numbers from JSON, JSON Lines and CSV, whoever wrote them: TRL's state, W&B's exports, file loggers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from holdfast.audit.read.raw.compressed import open_unpacked
from holdfast.audit.read.raw.fields import Unusable
from holdfast.audit.read.raw.jsonl import LARGEST_FILE, is_lines, json_lines, parse
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.scalars.names import STEPS
from holdfast.errors import DataError

Row = Mapping[str, float]
"""Numbers by name; the step is one of them."""
_NOT_NUMBERS = {"", "none", "null", "n/a"}
_RUN_OF_COLUMN = re.compile(r"^(?P<run>.+?) - (?P<name>[^ ]+)$")
DEEPEST = 3


def json_rows(path: Path, reading: Reading) -> Iterator[Row]:
    """Rows of a JSON or JSON Lines file.

    Taken are the list `log_history` of a trainer's state, a list of objects, an object of columns as pandas writes it,
    and one object a line; objects inside a row are flattened, the name of verl's `data` left out.
    """
    if is_lines(path):
        first = True
        for _, line in json_lines(path, reading):
            if first and isinstance(line.get("log_history"), list):
                yield from _of_value(line, path, reading)
                return
            first = False
            yield flat(line)
        return
    file, _ = open_unpacked(path)
    with file:
        text = file.read(LARGEST_FILE + 1)
    if len(text) > LARGEST_FILE:
        raise DataError(f"{path} has over {LARGEST_FILE / 1e9:.1f} GB in one JSON value: write one object a line")
    try:
        value = parse(text)
    except Unusable as problem:
        raise DataError(f"{path}: {problem}") from None
    reading.advance(path.stat().st_size)
    yield from _of_value(value, path, reading)


def _of_value(value: Any, path: Path, reading: Reading) -> Iterator[Row]:
    if isinstance(value, Mapping) and isinstance(value.get("log_history"), list):
        value = value["log_history"]
    elif isinstance(value, Mapping) and (columns := _columns(value)):
        value = columns
    for number, row in enumerate(value if isinstance(value, list) else [value]):
        if isinstance(row, Mapping):
            yield flat(row)
        else:
            reading.reject(path, number, "not an object", f"entry {number + 1}: a {type(row).__name__}")


def _columns(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Rows of {"name": [values]} or {"name": {"0": value}}; empty where it is neither."""
    if not value or not all(isinstance(column, (list, dict)) for column in value.values()):
        return []
    columns = {name: list(c.values()) if isinstance(c, dict) else c for name, c in value.items()}
    if len({len(column) for column in columns.values()}) != 1:
        return []
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def flat(row: Mapping[str, Any], deep: int = DEEPEST) -> dict[str, float]:
    """The numbers of a row; those in an object inside it are named outer/inner, or inner in `data` and `metrics`."""
    out: dict[str, float] = {}
    for name, value in row.items():
        number = number_of(value)
        if number is not None:
            out[str(name)] = number
        elif isinstance(value, Mapping) and deep:
            inner = flat(value, deep - 1)
            out |= inner if name in ("data", "metrics") else {f"{name}/{key}": v for key, v in inner.items()}
    return out


def number_of(value: Any) -> float | None:
    """A number, also one in text ("NaN", "Infinity"); None for all else, True and False among it."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str) and (len(value) > 40 or value.strip().lower() in _NOT_NUMBERS):
        return None
    if isinstance(value, (int, float, str)):
        try:
            return float(value)
        except (ValueError, OverflowError):
            return None
    return None


def csv_rows(path: Path, reading: Reading) -> Iterator[Row]:
    """Rows of a CSV file.

    A chart's export from W&B calls its columns "RUN - NAME", with __MIN and __MAX beside each: the name is taken, of
    several runs `RUN` is put before it. A TensorBoard export ("Wall time,Step,Value") is named by its file.
    """
    file, _ = open_unpacked(path)
    with file:
        lines = csv.reader(io.TextIOWrapper(file, "utf-8", errors="replace", newline=""))
        try:
            heads = next(lines, [])
            names = _heads(heads, path)
            for number, cells in enumerate(lines):
                if len(cells) != len(names):
                    if cells:
                        detail = f"line {number + 2} has {len(cells)} cells, the head {len(names)}"
                        reading.reject(path, number, "lengths differ", detail)
                    continue
                values = {n: v for n, c in zip(names, cells, strict=True) if n and (v := number_of(c)) is not None}
                if values:
                    yield values
        except csv.Error as error:
            raise DataError(f"{path} is not CSV: {error}") from error
    reading.advance(path.stat().st_size)


def _heads(heads: list[str], path: Path) -> list[str]:
    heads = [head.strip().removeprefix("\ufeff") for head in heads]
    if heads == ["Wall time", "Step", "Value"]:
        return ["", "Step", path.stem.rpartition("tag-")[2].replace("_", "/", 1)]
    split = [_RUN_OF_COLUMN.match(head) for head in heads]
    runs = {found["run"] for found in split if found and not found["name"].startswith("_")}
    names = []
    for head, found in zip(heads, split, strict=True):
        name = found["name"] if found else head
        if head.endswith(("__MIN", "__MAX")) or (found and name.startswith("_")):
            name = ""
        names.append(f"{found['run']} - {name}" if found and name and len(runs) > 1 else name)
    return names


def is_table(head: bytes, names: set[str]) -> bool:
    """Whether the first line of a CSV file names a step or a known number."""
    first = head.lstrip(b"\xef\xbb\xbf").splitlines()[:1]
    try:
        cells = next(csv.reader([line.decode("utf-8", "replace") for line in first]), [])
    except csv.Error:
        return False
    bare = {found["name"] if (found := _RUN_OF_COLUMN.match(c.strip())) else c.strip() for c in cells}
    return len(bare) > 1 and bool(bare & (names | set(STEPS)))

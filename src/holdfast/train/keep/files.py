"""Files that survive kills and power cuts: replaced in one move, forced to disk, read up to what is damaged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replace a file in one move, so that a kill leaves the old or the new one."""
    temporary = _beginning(path)
    temporary.write_text(text, encoding="utf-8")
    to_disk(temporary)
    temporary.replace(path)


def remove_beginning(path: Path) -> None:
    """Remove what a kill left of `write_text(path)`, which may never be called for this file again."""
    _beginning(path).unlink(missing_ok=True)


def append_line(path: Path, record: Any) -> None:
    """Add a line of JSON and force it to disk: a kill loses at most the line being written."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, valid: Callable[[Any], bool]) -> tuple[list[dict[str, Any]], list[int]]:
    """The records of a JSON Lines file and the numbers (from 1) of lines that are cut off or damaged."""
    records, damaged = [], []
    if not path.is_file():
        return records, damaged
    *lines, rest = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        record = _record(line)
        if isinstance(record, dict) and valid(record):
            records.append(record)
        elif line.strip():
            damaged.append(number)
    return records, damaged + [len(lines) + 1] * bool(rest)


def replace_folder(temporary: Path, path: Path) -> None:
    """Move a complete folder into place; a kill leaves the old one, the new one or none, never half of one."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    to_disk(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Delete a folder that, once a kill has left half of it, is not taken for whole."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    shutil.rmtree(old)


def to_disk(path: Path) -> None:
    """Force a file's bytes, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beginning(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _record(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None

"""Numbers that trainers print: `step:1 - a/b:0.5 - ...` of verl, dictionaries after `step 3:` of others."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from holdfast.audit.read.raw.compressed import open_unpacked
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.scalars.rows import Row, flat, number_of

LONGEST = 1 << 20
"""Characters of a line that are looked at."""
SEARCHED = 1 << 28
"""Bytes of a file that are searched for the first such line, and read."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_DASHED = re.compile(r"\bstep:(?P<step>\d+) - (?P<rest>.*:.*)")
_PAIR = re.compile(r"^(?P<name>[\w./@-]+):(?:np\.\w+\()?(?P<value>[-+.\w]+)\)?$")
_DICTIONARY = re.compile(r"\b(?:(?P<kind>step|rollout|perf|[Gg]lobal step) )?(?P<step>\d+): (?P<rest>\{.*\})")
_TRAINER = re.compile(r"(?P<rest>\{'(?:loss|grad_norm|reward|num_tokens)':.*'epoch':.*\})")
_SPECIAL = re.compile(r"\b(nan|inf)\b")
_WRAPPED = re.compile(r"np\.\w+\(([^()]*)\)|tensor\(([^(),]*)[^()]*\)")


def console_rows(path: Path, reading: Reading) -> Iterator[Row]:
    """Rows of every line that holds numbers; other lines are passed over."""
    file, _ = open_unpacked(path)
    read = 0
    with file:
        while read < SEARCHED and (line := file.readline(LONGEST)):
            read += len(line)
            if (row := row_of(line.decode("utf-8", "replace"))) is not None:
                yield row
    reading.advance(path.stat().st_size)


def is_console(path: Path) -> bool:
    """Whether any line of a file holds numbers that a trainer printed."""
    return next(console_rows(path, Reading()), None) is not None


def row_of(line: str) -> Row | None:
    """The numbers of one line, None where it has none.

    >>> row_of("(TaskRunner pid=7) step:3 - actor/entropy:0.41 - actor/lr:np.float64(1e-06) - note:x")
    {'step': 3.0, 'actor/entropy': 0.41, 'actor/lr': 1e-06}
    >>> row_of("INFO step 12: {'train/loss': nan, 'train/grad_norm': np.float32(0.5)}")
    {'step': 12.0, 'train/loss': nan, 'train/grad_norm': 0.5}
    """
    if "step" not in line and "{" not in line:
        return None
    line = _COLOURS.sub("", line).rstrip()
    if found := _DASHED.search(line):
        row = {"step": float(found["step"])}
        for piece in found["rest"].split(" - "):
            pair = _PAIR.match(piece.strip())
            if pair and (value := number_of(pair["value"])) is not None:
                row[pair["name"]] = value
        return row if len(row) > 1 else None
    if found := _DICTIONARY.search(line):
        values = _dictionary(found["rest"])
        return {"step": float(found["step"]), **values} if values else None
    if found := _TRAINER.search(line):
        return _dictionary(found["rest"]) or None
    return None


def _dictionary(text: str) -> dict[str, float]:
    """The numbers of a dictionary that Python printed; nothing of it is run."""
    text = _SPECIAL.sub(r"'\1'", _WRAPPED.sub(lambda m: m[1] or m[2] or "None", text))
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {}
    return flat(value) if isinstance(value, dict) else {}

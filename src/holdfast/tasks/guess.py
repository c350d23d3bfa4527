"""What a table of somebody's own most likely is: the task that reads it, its columns, how answers compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from holdfast.errors import ConfigError
from holdfast.tasks.answers import last_number
from holdfast.tasks.records import Csv, JsonLines, Parquet, Records

READERS: Mapping[str, type[Records]] = {
    ".jsonl": JsonLines,
    ".csv": Csv,
    ".tsv": Csv,
    ".parquet": Parquet,
}
PROMPTS = ("prompt", "question", "problem", "instruction", "query", "input", "messages")
ANSWERS = ("answer", "ground_truth", "final_answer", "label", "target", "solution", "output", "response")
GSM8K = "####"
LOOKED_AT = 200
"""Rows."""


def guess_task(path: Path) -> dict[str, Any]:
    """The keys of `[task]` for a file.

    Raises:
        ConfigError: its ending is of no known kind, or no column looks like a prompt or an answer.
        DataError: it cannot be read.
    """
    reader = READERS.get(path.suffix)
    if reader is None:
        raise ConfigError(f"{path}: which format? known endings are {', '.join(READERS)}")
    rows = [row for _, row in islice(_rows(reader, path), LOOKED_AT)]
    if not rows or not isinstance(rows[0], Mapping):
        raise ConfigError(f"{path} has no rows with named columns")
    names = list(rows[0])
    prompt, answer = (_first(names, known, path, what) for known, what in ((PROMPTS, "prompt"), (ANSWERS, "answer")))
    found: dict[str, Any] = {"name": reader.name, "path": str(path)}
    found |= {} if prompt == "prompt" else {"prompt_key": prompt}
    found |= {} if answer == "answer" else {"answer_key": answer}
    texts = [str(row.get(answer)) for row in rows]
    if all(GSM8K in text for text in texts):
        found["answer_marker"] = GSM8K
        texts = [text.rpartition(GSM8K)[2] for text in texts]
    return found | {"verifier": "numeric" if all(last_number(text) is not None for text in texts) else "exact"}


def is_chat(path: Path, task: Mapping[str, Any]) -> bool:
    """Whether the prompts are chat messages."""
    row = next(iter(_rows(READERS[path.suffix], path)))[1]
    return isinstance(row.get(task.get("prompt_key", "prompt")), list)


def _rows(reader: type[Records], path: Path) -> Iterable[tuple[str, Any]]:
    return reader.rows(object.__new__(reader), str(path))


def _first(names: list[str], known: Iterable[str], path: Path, what: str) -> str:
    by_case = {str(name).lower(): name for name in names}
    for name in known:
        if name in by_case:
            return by_case[name]
    raise ConfigError(
        f"{path}: no column for the {what} among {', '.join(map(str, names))}: known names are {', '.join(known)}; "
        f"rename one, or write the file by hand with task.{what}_key"
    )

"""Prompts and answers of one's own: JSON Lines, CSV, parquet, Hugging Face datasets, and how they are judged."""

from __future__ import annotations

import codecs
import csv
import io
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from holdfast.errors import ConfigError, DataError, nearest
from holdfast.tasks.answers import answer_of, exact, last_number, numeric
from holdfast.tasks.base import Problem, in_split
from holdfast.tasks.judge import MATH

COMPARISONS: dict[str, Callable[[str, str], float]] = {"exact": exact, "numeric": numeric}


@dataclass(frozen=True)
class Records:
    """Problems from a table: `prompt_key` and `answer_key` name its columns, `solution_key` is used where present.

    The response's answer is the text after the last `marker`, or the whole response if the marker is empty;
    `answer_marker` finds the reference answer in its column in the same way. `verifier` compares them: "exact" texts,
    "numeric" values, "math-verify", or a function "module:name" or "file.py:name", of which the last two see the whole
    response. `template` is put around a prompt at "{prompt}", `system` in front of it as a system message. A prompt
    may be a list of chat messages: those and `system` need `model.chat = true`. `eval_path` holds out a file; without
    it a tenth of the prompts is held out by a checksum of their text.
    """

    path: str
    eval_path: str | None = None
    prompt_key: str = "prompt"
    answer_key: str = "answer"
    solution_key: str = "solution"
    marker: str = ""
    answer_marker: str = ""
    template: str = "{prompt}"
    system: str | None = None
    verifier: str = "exact"
    name: str = field(default="records", init=False)

    def __post_init__(self) -> None:
        if self.judge is None and self.verifier not in COMPARISONS:
            raise ConfigError(
                f"task.verifier = {self.verifier!r}: {nearest(self.verifier, [*COMPARISONS, MATH])}, "
                "or a function module:name or file.py:name"
            )
        if "{prompt}" not in self.template:
            raise ConfigError(f"task.template = {self.template!r}: write {{prompt}} where the prompt belongs")
        self.check_source()
        _ = self._pools  # a bad table is reported before anything else starts

    def check_source(self) -> None:
        """Whether the files are there.

        Raises:
            ConfigError: they are not.
        """
        for key in ("path", "eval_path"):
            value = getattr(self, key)
            if value is not None and Path(value).is_dir():
                raise ConfigError(f"task.{key} = {value!r} is a folder: name the file in it")
            if value is not None and not Path(value).is_file():
                raise ConfigError(f"task.{key} = {value!r}: there is no such file (working folder: {Path.cwd()})")

    def rows(self, path: str) -> Iterator[tuple[str, Any]]:
        """(where, row) of every row."""
        raise NotImplementedError

    @property
    def judge(self) -> str | None:
        """The function that judges whole responses in a process of its own, if any."""
        return self.verifier if self.verifier == MATH or ":" in self.verifier or self.verifier.endswith(".py") else None

    @property
    def alphabet(self) -> str:
        """Every character in the table: enough for a character tokenizer."""
        problems = [problem for pool in self._pools.values() for problem in pool]
        return "".join(sorted({c for p in problems for c in p.prompt + p.answer + (p.solution or "") + self.marker}))

    def problems(self, seed: int, count: int, split: str) -> list[Problem]:
        """`count` problems, without repetition until the table is used up."""
        pool = self.pool(split)
        if not pool:
            rows = sum(map(len, self._pools.values()))
            raise DataError(
                f"{self.path} has no prompts for the {split} split ({rows} in all): add rows, or name a held-out file "
                "with task.eval_path"
            )
        draw, chosen = random.Random(seed), []
        while len(chosen) < count:
            chosen += draw.sample(pool, min(len(pool), count - len(chosen)))
        return chosen

    def pool(self, split: str) -> list[Problem]:
        """Every problem of a split, in the order of the table."""
        return self._pools[split]

    def reward(self, problem: Problem, response: str) -> float:
        """1 where the response's answer is the table's."""
        answer = answer_of(response, self.marker)
        return 0.0 if answer is None else COMPARISONS[self.verifier](answer, problem.answer)

    def sloppy(self, problem: Problem, seed: int, error_rate: float) -> str:
        """Not possible: wrong steps cannot be made up for text whose steps are unknown."""
        raise ConfigError(f"task {self.name!r} has no sloppy teacher: set warm_start.sloppy_steps = 0")

    @cached_property
    def _pools(self) -> dict[str, list[Problem]]:
        everything = self._read(self.path)
        if self.eval_path is not None:
            return {"train": everything, "eval": self._read(self.eval_path)}
        return split_pools(everything)

    def _read(self, path: str) -> list[Problem]:
        return self._problems(self.rows(path), path)

    def _problems(self, rows: Iterable[tuple[str, Any]], origin: str) -> list[Problem]:
        problems = [self._parse(row, where) for where, row in rows]
        if not problems:
            raise DataError(f"{origin} holds no problems: one row with a prompt and an answer each is expected")
        return problems

    def _parse(self, row: Any, where: str) -> Problem:
        for key in (self.prompt_key, self.answer_key):
            if not isinstance(row, Mapping) or key not in row:
                keys = ", ".join(row) if isinstance(row, Mapping) else type(row).__name__
                raise DataError(f"{where}: no field {key!r} (found: {keys}); set task.prompt_key or task.answer_key")
            chat = key == self.prompt_key and isinstance(row[key], list)
            if row[key] is None or (isinstance(row[key], list | dict) and not chat):
                raise DataError(f"{where}: field {key!r} is {type(row[key]).__name__}: text or a number is needed")
        solution = row.get(self.solution_key)
        answer = answer_of(str(row[self.answer_key]), self.answer_marker)
        if answer is None:
            raise DataError(f"{where}: no {self.answer_marker!r} in {self.answer_key!r}; set task.answer_marker")
        if self.verifier == "numeric" and last_number(answer) is None:
            raise DataError(
                f"{where}: the answer {answer[:80]!r} holds no number that can be read, so no response could be right; "
                'correct or remove the row, or set task.verifier = "exact"'
            )
        prompt, messages = self._prompt(row[self.prompt_key], where)
        used = (self.prompt_key, self.answer_key, self.solution_key)
        return Problem(
            prompt,
            answer,
            None if solution is None else str(solution),
            self.name,
            messages=messages,
            row={name: value for name, value in row.items() if name not in used},
        )

    def _prompt(self, given: Any, where: str) -> tuple[str, tuple[tuple[str, str], ...] | None]:
        """The prompt's text, and its messages where they are more than that text."""
        talk = list(messages_of(given, where)) if isinstance(given, list) else [("user", str(given))]
        talk[-1] = (talk[-1][0], self.template.replace("{prompt}", talk[-1][1]))
        text = "\n\n".join(content for role, content in talk if role != "system")
        if self.system is not None and talk[0][0] != "system":
            talk.insert(0, ("system", self.system))
        return text, tuple(talk) if isinstance(given, list) or len(talk) > 1 else None


@dataclass(frozen=True)
class JsonLines(Records):
    """One JSON object a line."""

    name: str = field(default="jsonl", init=False)

    def rows(self, path: str) -> Iterator[tuple[str, Any]]:
        """(where, object) of every line that is not empty."""
        # Bytes: characters such as U+2028, which text may hold, end no line.
        for number, line in enumerate(_bytes_of(path).removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
            if line.strip():
                where = f"{path}, line {number}"
                try:
                    yield where, json.loads(line.decode())
                except json.JSONDecodeError as error:
                    raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
                except UnicodeDecodeError as error:
                    raise DataError(f"{where}: not UTF-8 (byte {error.start + 1}): save the file as UTF-8") from error
                except (ValueError, RecursionError) as error:  # digits or depth without end
                    raise DataError(f"{where}: cannot be read ({error})") from error


@dataclass(frozen=True)
class Csv(Records):
    """Columns named in the first line; tabs where the file's name ends in .tsv."""

    name: str = field(default="csv", init=False)

    def rows(self, path: str) -> Iterator[tuple[str, Any]]:
        """(where, row) of every row."""
        try:
            text = _bytes_of(path).removeprefix(codecs.BOM_UTF8).decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 (byte {error.start + 1}): save the file as UTF-8") from error
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.endswith(".tsv") else ",")
        try:
            for row in table:
                where = f"{path}, line {table.line_num}"
                if None in row:
                    raise DataError(f"{where}: more fields than the first line names: quote a field that has commas")
                yield where, row
        except csv.Error as error:
            raise DataError(f"{path}, line {table.line_num}: {error}; JSON Lines has no such limits") from error


def messages_of(given: list[Any], where: str) -> Iterator[tuple[str, str]]:
    """(role, content) of chat messages.

    Raises:
        DataError: no messages, one without a role and a text, or no message of the user to answer.
    """
    form = '[{"role": "user", "content": "..."}]'
    if not given:
        raise DataError(f"{where}: the prompt is an empty list: chat messages look like {form}")
    role = None
    for message in given:
        role, text = (message.get(k) if isinstance(message, Mapping) else None for k in ("role", "content"))
        if not isinstance(role, str) or not isinstance(text, str):
            raise DataError(f"{where}: {str(message)[:80]!r} is no chat message; they look like {form}")
        yield role, text
    if role in ("assistant", "system"):
        raise DataError(f"{where}: the prompt ends with a message of the {role}: there is nothing to answer")


def _bytes_of(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class Parquet(Records):
    """A parquet file."""

    name: str = field(default="parquet", init=False)

    def rows(self, path: str) -> Iterator[tuple[str, Any]]:
        """(where, row) of every row, a batch in memory at a time."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                number = 0
                for batch in file.iter_batches():
                    for row in batch.to_pylist():
                        number += 1
                        yield f"{path}, row {number}", row
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is not a parquet file: {error}") from error


@dataclass(frozen=True)
class HuggingFace(Records):
    """A dataset by hub name or folder (needs the package `datasets`), with its own splits."""

    subset: str | None = None
    split: str = "train"
    eval_split: str | None = None
    name: str = field(default="huggingface", init=False)

    def check_source(self) -> None:
        """The package loads what it is given, and says what it cannot."""
        if self.eval_path is not None:
            raise ConfigError("task 'huggingface' holds out a split: set task.eval_split instead of task.eval_path")

    @cached_property
    def _pools(self) -> dict[str, list[Problem]]:
        everything = self._problems(self._load(self.split), f"{self.path}, split {self.split}")
        if self.eval_split is None:
            return split_pools(everything)
        origin = f"{self.path}, split {self.eval_split}"
        return {"train": everything, "eval": self._problems(self._load(self.eval_split), origin)}

    def _load(self, split: str) -> Iterator[tuple[str, Any]]:
        try:
            import datasets  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError("task 'huggingface' needs the package datasets: pip install datasets") from None
        try:
            if (Path(self.path) / "dataset_dict.json").is_file() or (Path(self.path) / "state.json").is_file():
                table: Any = datasets.load_from_disk(self.path)
                table = table[split] if isinstance(table, dict) else table
            else:
                table = datasets.load_dataset(self.path, self.subset, split=split)
        except (OSError, ValueError, KeyError, ConnectionError) as error:
            raise ConfigError(f"task.path = {self.path!r}, split {split!r} cannot be loaded: {error}") from error
        for number, row in enumerate(table, start=1):
            yield f"{self.path}, split {split}, row {number}", row


def split_pools(everything: list[Problem]) -> dict[str, list[Problem]]:
    """A tenth of the prompts held out by a checksum; a single prompt serves both splits."""
    pools = {split: [p for p in everything if in_split(p.prompt, split)] for split in ("train", "eval")}
    return {split: pool or everything for split, pool in pools.items()} if len(everything) < 2 else pools

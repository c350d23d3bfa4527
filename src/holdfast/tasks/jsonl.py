"""Prompts and answers from a JSON Lines file, rewarded by exact match."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from holdfast.errors import ConfigError, DataError
from holdfast.tasks.base import Problem, in_split, last_answer


@dataclass(frozen=True)
class JsonLines:
    """One object a line: `prompt_key` and `answer_key` are required, `solution_key` is used where it is present.

    The response's answer is the text after the last `marker`, or the whole response if the marker is empty; it must
    equal the answer after both are stripped. `eval_path` holds out a file; without it a tenth of the prompts is held
    out by a checksum of their text.
    """

    path: str
    eval_path: str | None = None
    prompt_key: str = "prompt"
    answer_key: str = "answer"
    solution_key: str = "solution"
    marker: str = ""
    name: str = field(default="jsonl", init=False)

    def __post_init__(self) -> None:
        for key in ("path", "eval_path"):
            value = getattr(self, key)
            if value is not None and not Path(value).is_file():
                raise ConfigError(f"task.{key} = {value!r}: there is no such file (working folder: {Path.cwd()})")
        _ = self._pools  # a bad file is reported before anything else starts

    @cached_property
    def _pools(self) -> dict[str, list[Problem]]:
        everything = self._read(self.path)
        if self.eval_path is not None:
            return {"train": everything, "eval": self._read(self.eval_path)}
        pools = {split: [p for p in everything if in_split(p.prompt, split)] for split in ("train", "eval")}
        return {split: pool or everything for split, pool in pools.items()} if len(everything) < 2 else pools

    @property
    def alphabet(self) -> str:
        """Every character in the file: enough for a character tokenizer."""
        problems = [problem for pool in self._pools.values() for problem in pool]
        return "".join(sorted({c for p in problems for c in p.prompt + p.answer + (p.solution or "") + self.marker}))

    def problems(self, seed: int, count: int, split: str) -> list[Problem]:
        """`count` problems, without repetition until the file is used up."""
        pool = self._pools[split]
        if not pool:
            raise DataError(
                f"{self.path} has no prompts for the {split} split ({len(self._read(self.path))} lines in all): add "
                "lines, or name a held-out file with task.eval_path"
            )
        draw, chosen = random.Random(seed), []
        while len(chosen) < count:
            chosen += draw.sample(pool, min(len(pool), count - len(chosen)))
        return chosen

    def reward(self, problem: Problem, response: str) -> float:
        """1 where the response's answer is the file's."""
        answer = last_answer(response, self.marker) if self.marker else response.strip()
        return float(answer == problem.answer.strip())

    def sloppy(self, problem: Problem, seed: int, error_rate: float) -> str:
        """Not possible: wrong steps cannot be made up for text whose steps are unknown."""
        raise ConfigError("task 'jsonl' has no sloppy teacher: set warm_start.sloppy_steps = 0")

    def _read(self, path: str) -> list[Problem]:
        problems = []
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip():
                problems.append(self._parse(line, f"{path}, line {number}"))
        if not problems:
            raise DataError(f"{path} holds no problems: one JSON object a line is expected")
        return problems

    def _parse(self, line: str, where: str) -> Problem:
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
        for key in (self.prompt_key, self.answer_key):
            if not isinstance(record, dict) or key not in record:
                keys = ", ".join(record) if isinstance(record, dict) else type(record).__name__
                raise DataError(f"{where}: no field {key!r} (found: {keys}); set task.prompt_key or task.answer_key")
        solution = record.get(self.solution_key)
        answer = str(record[self.answer_key])
        return Problem(str(record[self.prompt_key]), answer, None if solution is None else str(solution), self.name)

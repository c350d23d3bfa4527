"""Rewards of many responses: by the task itself, or by somebody's function in processes of its own.

A function that raises, returns no finite number or takes too long gives reward 0, and is reported.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol, runtime_checkable

from holdfast.errors import ConfigError, DataError
from holdfast.tasks import judge
from holdfast.tasks.base import Problem, Task
from holdfast.tasks.process import Judge

LARGEST = 1e15
"""Rewards beyond it, squared and summed, leave the range of float32."""

OWN = "task"
"""The task's own reward, among several."""

_SHOWN = ("prompt", "answer", "solution", "environment", "messages", "row")

MEMORY_GIB = 8.0
"""What a function's process, and each that it starts, may take."""


@dataclass(frozen=True)
class Score:
    """A reward; `error` says why it is 0 where the function gave none, `late` that it was killed.

    `parts` are the values of several functions before their weights, by name.
    """

    value: float
    error: str | None = None
    late: bool = False
    parts: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class Scorer(Protocol):
    """Rewards in the order of the responses."""

    def __call__(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Score]: ...

    def close(self) -> None:
        """End its processes."""
        ...


class InProcess:
    """A task's own reward."""

    def __init__(self, reward: Callable[[Problem, str], float]) -> None:
        self.reward = reward

    def __call__(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Score]:
        return [self._one(problem, text) for problem, text in zip(problems, responses, strict=True)]

    def close(self) -> None:
        """Nothing to end."""

    def _one(self, problem: Problem, response: str) -> Score:
        try:
            return finite(float(self.reward(problem, response)))
        except Exception as error:
            return Score(0.0, readable(f"raised {type(error).__name__}: {error}"))


class Isolated:
    """A function `module:name`, or "math-verify", in `workers` processes that are killed after `timeout` seconds.

    The function is called as function(problem, response) with problem.prompt, .answer, .solution and .environment.
    """

    def __init__(self, function: str, *, timeout: float, workers: int, memory_gib: float = MEMORY_GIB) -> None:
        """Start one process, to see that the function is there.

        Raises:
            ConfigError: the function cannot be imported.
        """
        if function == judge.MATH and importlib.util.find_spec("math_verify") is None:
            raise ConfigError('task.verifier = "math-verify" needs a package: pip install "holdfast-rl[math]"')
        self.function, self.timeout, self.memory_gib = function, timeout, memory_gib
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="judge")
        self.idle: SimpleQueue[Judge | None] = SimpleQueue()
        for _ in range(workers - 1):
            self.idle.put(None)
        self.idle.put(Judge(function, memory_gib=memory_gib))

    def __call__(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Score]:
        return list(self.pool.map(self._one, problems, responses))

    def close(self) -> None:
        """Kill the processes."""
        self.pool.shutdown()
        while not self.idle.empty():
            process = self.idle.get()
            if process is not None:
                process.end()

    def _one(self, problem: Problem, response: str) -> Score:
        process = self.idle.get()
        try:
            if process is None or not process.alive:
                if process is not None:
                    process.end()  # what it started may have outlived it
                    process = None
                process = Judge(self.function, memory_gib=self.memory_gib)
            return _ask(process, problem, response, self.timeout)
        finally:
            self.idle.put(process)


class Weighted:
    """Σ weight · reward over several scorers; one that gives none counts 0, and is named."""

    def __init__(self, parts: Mapping[str, tuple[float, Scorer]]) -> None:
        self.parts = parts

    def __call__(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Score]:
        found = {name: scorer(problems, responses) for name, (_, scorer) in self.parts.items()}
        return [self._sum({name: of[row] for name, of in found.items()}) for row in range(len(responses))]

    def close(self) -> None:
        """End the processes of all."""
        for _, scorer in self.parts.values():
            scorer.close()

    def _sum(self, scores: Mapping[str, Score]) -> Score:
        errors = [f"{name}: {score.error}" for name, score in scores.items() if score.error]
        value = finite(sum(weight * scores[name].value for name, (weight, _) in self.parts.items()))
        error = "; ".join([*errors, *([value.error] if value.error else [])]) or None
        values = {name: score.value for name, score in scores.items()}
        return Score(value.value, error, any(score.late for score in scores.values()), values)


def _ask(process: Judge, problem: Problem, response: str, timeout: float) -> Score:
    """One response's score; the process is dead afterwards where it gave none."""
    shown = {name: getattr(problem, name) for name in _SHOWN}
    answer, late = process.exchange({"problem": shown, "response": response}, timeout)
    if answer is None:
        process.end()
        why = f"was killed after {timeout:g} seconds (raise task.reward_timeout if it needs longer)"
        return Score(0.0, why if late else "ended its process", late)
    return Score(0.0, readable(f"raised {answer['error']}")) if "error" in answer else finite(answer["value"])


def finite(value: float) -> Score:
    """A score, if the value is one."""
    if not math.isfinite(value):
        return Score(0.0, f"returned {value}")
    if abs(value) > LARGEST:
        return Score(0.0, f"returned {value:g}, and rewards lie within ±{LARGEST:g}")
    return Score(value)


def readable(text: str) -> str:
    """Text that can be written anywhere: halves of surrogate pairs are spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()


def rewards_of(scores: Sequence[Score], problems: Sequence[Problem], responses: Sequence[str]) -> list[float]:
    """The values, where there are any.

    Raises:
        DataError: not one response could be scored.
    """
    if all(score.error for score in scores):
        raise DataError(
            f"the reward function {scores[0].error} for prompt {problems[0].prompt!r}, response "
            f"{shorten(responses[0])!r}, and failed for all the others of this step too; make it return a finite "
            "number for every response"
        )
    return [score.value for score in scores]


def mean_parts(scores: Sequence[Score], whose: str) -> dict[str, float]:
    """The mean of each of several reward functions, before its weight: "reward_of_right"."""
    names = scores[0].parts if scores else ()
    return {f"{whose}_of_{name}": sum(score.parts[name] for score in scores) / len(scores) for name in names}


def shorten(text: str, limit: int = 80) -> str:
    """At most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def make_scorer(
    task: Task,
    function: str | Mapping[str, float] | None,
    *,
    timeout: float,
    workers: int,
    memory_gib: float = MEMORY_GIB,
) -> Scorer:
    """Who rewards the task's responses: `function` if given, else the function the task names, else the task.

    Several functions with their weights add up; the name "task" stands for the task's own reward.

    Raises:
        ConfigError: a function cannot be imported.
    """
    if isinstance(function, Mapping):
        parts: dict[str, tuple[float, Scorer]] = {}
        try:
            for whole, weight in function.items():
                name = None if whole == OWN else whole
                made = make_scorer(task, name, timeout=timeout, workers=workers, memory_gib=memory_gib)
                parts[short_names(function)[whole]] = (float(weight), made)
        except BaseException:
            Weighted(parts).close()
            raise
        return Weighted(parts)
    name = function or getattr(task, "judge", None)
    if name is None:
        return InProcess(task.reward)
    return Isolated(name, timeout=timeout, workers=workers, memory_gib=memory_gib)


def short_names(functions: Mapping[str, float]) -> dict[str, str]:
    """Each function's own name, or its file's; the whole where two would be called the same."""
    short = {whole: whole.rpartition(":")[2] if ":" in whole else Path(whole).stem for whole in functions}
    return {whole: whole if list(short.values()).count(name) > 1 else name for whole, name in short.items()}

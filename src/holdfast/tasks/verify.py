"""Rewards of many responses: by the task itself, or by somebody's function in processes of its own.

A function that raises, returns no finite number or takes too long gives reward 0, and is reported.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, runtime_checkable

from holdfast.errors import ConfigError, DataError
from holdfast.tasks import judge
from holdfast.tasks.base import Problem, Task

START = 120.0
"""Seconds that importing the function may take."""


@dataclass(frozen=True)
class Score:
    """A reward; `error` says why it is 0 where the function gave none, `late` that it was killed."""

    value: float
    error: str | None = None
    late: bool = False


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
            return Score(0.0, f"raised {type(error).__name__}: {error}")


class Isolated:
    """A function `module:name`, or "math-verify", in `workers` processes that are killed after `timeout` seconds.

    The function is called as function(problem, response) with problem.prompt, .answer, .solution and .environment.
    """

    def __init__(self, function: str, *, timeout: float, workers: int) -> None:
        """Start one process, to see that the function is there.

        Raises:
            ConfigError: the function cannot be imported.
        """
        if function == judge.MATH and importlib.util.find_spec("math_verify") is None:
            raise ConfigError('task.verifier = "math-verify" needs a package: pip install "holdfast-rl[math]"')
        self.function, self.timeout = function, timeout
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="judge")
        self.idle: SimpleQueue[_Judge | None] = SimpleQueue()
        for _ in range(workers - 1):
            self.idle.put(None)
        self.idle.put(_Judge(function))

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
                process = _Judge(self.function)
            return process.ask(problem, response, self.timeout)
        finally:
            self.idle.put(process)


def finite(value: float) -> Score:
    """A score, if the value is one."""
    if not math.isfinite(value):
        return Score(0.0, f"returned {value}")
    return Score(value)


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


def shorten(text: str, limit: int = 80) -> str:
    """At most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def make_scorer(task: Task, function: str | None, *, timeout: float, workers: int) -> Scorer:
    """Who rewards the task's responses: `function` if given, else the function the task names, else the task.

    Raises:
        ConfigError: the function cannot be imported.
    """
    name = function or getattr(task, "judge", None)
    return InProcess(task.reward) if name is None else Isolated(name, timeout=timeout, workers=workers)


class _Judge:
    """One process that answers one request at a time."""

    def __init__(self, function: str) -> None:
        path = [str(Path.cwd()), *(entry for entry in sys.path if entry)]
        self.process = subprocess.Popen(
            [sys.executable, judge.__file__, function, json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            start_new_session=True,  # a Ctrl-C is for the trainer: it must not look like a wrong answer
        )
        answer, late = self._exchange(None, START)
        if answer is None or answer["error"]:
            self.end()
            silent = "its import never ended" if late else "its import ended the process"
            reason = silent if answer is None else answer["error"]
            raise ConfigError(
                f"task.reward = {function!r} cannot be imported ({reason}); write package.module:function and start "
                "holdfast where the module can be found"
            )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, problem: Problem, response: str, timeout: float) -> Score:
        """One response's score; the process is dead afterwards if it took too long."""
        shown = {name: getattr(problem, name) for name in ("prompt", "answer", "solution", "environment")}
        request = json.dumps({"problem": shown, "response": response})
        answer, late = self._exchange(request, timeout)
        if answer is None:
            self.end()
            why = f"was killed after {timeout:g} seconds" if late else "ended its process"
            return Score(0.0, f"{why} (raise task.reward_timeout if it needs longer)" if late else why, late)
        return Score(0.0, f"raised {answer['error']}") if "error" in answer else finite(answer["value"])

    def end(self) -> None:
        """Kill and clean up."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # a request that it did not live to read
                    stream.close()

    def _exchange(self, line: str | None, timeout: float) -> tuple[dict[str, Any] | None, bool]:
        """Send a line, read one; None where the process ended first, True where that was our doing."""
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self.process.kill()

        assert self.process.stdin is not None
        assert self.process.stdout is not None
        timer = threading.Timer(timeout, expire)
        timer.start()
        try:
            if line is not None:
                self.process.stdin.write(line + "\n")
                self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except OSError:
            answer = ""
        finally:
            timer.cancel()
        # An answer that came just before the kill still counts; the process is found dead next time.
        return (json.loads(answer) if answer.endswith("\n") else None), expired.is_set()

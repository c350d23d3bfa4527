"""A program that judges responses with somebody's function, one JSON line in, one out; killed when it takes too long.

Started by path, so that it imports that function's module and nothing of holdfast (which would load torch):

    python judge.py package.module:function SEARCH_PATH
"""

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

MATH = "math-verify"


def load(name: str) -> Callable[[Any, str], Any]:
    """The function of this name, or math-verify's comparison."""
    if name != MATH:
        module, _, attribute = name.partition(":")
        return getattr(importlib.import_module(module), attribute)
    from math_verify import parse, verify  # pyright: ignore[reportMissingImports]

    # Their own time limits need signals; here the whole process is killed.
    unlimited: Any = None

    def equal(problem: Any, response: str) -> float:
        gold = parse(f"${problem.answer}$", parsing_timeout=unlimited)
        return float(verify(gold, parse(response, parsing_timeout=unlimited), timeout_seconds=unlimited))

    return equal


def attempt(work: Callable[[], Any]) -> dict[str, Any]:
    """{"value": ...} or {"error": ...}; exit() is an error like any other."""
    try:
        return {"value": work()}
    except BaseException as error:  # SystemExit too
        return {"error": f"{type(error).__name__}: {error}"}


def follow(parent: int) -> None:
    """End with the trainer, even where it was killed while the function loops: nobody else would stop it then."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main(name: str, search_path: str) -> None:
    """Say whether the function could be loaded, then answer requests until the input ends."""
    threading.Thread(target=follow, args=(os.getppid(),), daemon=True).start()
    # What the function prints or reads must not end up between the answers.
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    sys.path[:] = json.loads(search_path)
    loaded = attempt(lambda: load(name))
    print(json.dumps({"error": loaded.get("error")}), file=answers, flush=True)
    for line in requests:
        request = json.loads(line)
        problem, response = SimpleNamespace(**request["problem"]), request["response"]
        answer = attempt(lambda: float(loaded["value"](problem, response)))  # noqa: B023
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

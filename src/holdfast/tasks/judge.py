"""A program that judges responses with somebody's function; killed, with all it started, when it takes too long.

Started by path, so that it imports that function's module and nothing of holdfast (which would load torch):

    python judge.py package.module:function SEARCH_PATH BYTES

A request on standard input is four bytes of length, that many of JSON, and a number used once. The number is read only
after the function has returned: until then it is in no memory that code under judgement could look through, and the
answer (the number, four bytes of length, JSON, in one write) cannot be made up without it. The first request loads the
function.
"""

import contextlib
import fcntl
import importlib
import json
import os
import random
import resource
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MATH = "math-verify"
LENGTH = struct.Struct(">I")
NONCE_BYTES = 16
MARK = "HOLDFAST_JUDGE"
"""The environment variable by which what a function starts is found again, whatever session it moved to."""
LONGEST_ERROR = 1000
"""Characters; an answer must go through a pipe in one piece."""


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
        told = type(error).__name__
        with contextlib.suppress(BaseException):  # an error that cannot say what it is
            told = f"{told}: {error}"
        return {"error": told[:LONGEST_ERROR]}


def kill_started(leader: int | None, mark: str) -> None:
    """Kill what a judge started, in its process group or (found on Linux only) moved to another one, then the group."""
    wanted = f"{MARK}={mark}".encode()
    for _ in range(5):  # while they are listed they may start more
        found = [number for number in _others() if wanted in _environment(number)]
        for number in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(number, signal.SIGKILL)
        if not found:
            break
    if leader is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)


def _others() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if folder.name != str(os.getpid())]


def _environment(number: int) -> list[bytes]:
    with contextlib.suppress(OSError):  # gone since, or somebody else's
        return Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
    return []


def follow(parent: int) -> None:
    """End with the trainer, even where it was killed while the function loops: nobody else would stop it then."""
    while os.getppid() == parent:
        time.sleep(0.5)
    if mark := os.environ.get(MARK):
        kill_started(os.getpid(), mark)
    os._exit(1)


def hide(descriptor: int) -> int:
    """A copy at a number that is drawn, which programs that are started do not inherit."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = min(allowed, 1 << 16) if allowed > 0 else 1 << 16
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, random.SystemRandom().randrange(most // 3, most * 2 // 3))


def limit_memory(size: int) -> None:
    """At most so many bytes of memory of its own for this process, and for each that it starts; 0: no limit."""
    if size:
        # Not the address space: CUDA and large files reserve far more of that than they use.
        kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
        most = resource.getrlimit(kind)[1]
        size = size if most == resource.RLIM_INFINITY else min(size, most)
        resource.setrlimit(kind, (size, size))


def read(descriptor: int, size: int) -> bytes:
    """Exactly so many bytes.

    Raises:
        EOFError: the trainer is done.
    """
    found = b""
    while len(found) < size:
        piece = os.read(descriptor, min(size - len(found), 1 << 20))
        if not piece:
            raise EOFError
        found += piece
    return found


def main(name: str, search_path: str, memory: str) -> None:
    """Say whether the function could be loaded, then answer requests until the input ends."""
    own = os.getpid()
    threading.Thread(target=follow, args=(os.getppid(),), daemon=True).start()
    # What the function prints or reads must not end up between the answers.
    requests, answers = hide(0), hide(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    limit_memory(int(memory))
    sys.path[:] = json.loads(search_path)
    function: Any = None
    while True:
        request = json.loads(read(requests, LENGTH.unpack(read(requests, LENGTH.size))[0]))
        if function is None:
            loaded = attempt(lambda: load(name))
            function, answer = loaded.get("value"), {"error": loaded.get("error")}
        else:
            problem, response = SimpleNamespace(**request["problem"]), request["response"]
            answer = attempt(lambda: float(function(problem, response)))  # noqa: B023
        if os.getpid() != own:
            os._exit(0)  # a process that the function forked, and let return
        text = json.dumps(answer).encode()
        if len(text) > 3000:  # escapes take up to six bytes a character
            text = json.dumps({"error": str(answer["error"])[:300]}).encode()
        os.write(answers, read(requests, NONCE_BYTES) + LENGTH.pack(len(text)) + text)


if __name__ == "__main__":
    with contextlib.suppress(EOFError):
        main(*sys.argv[1:])

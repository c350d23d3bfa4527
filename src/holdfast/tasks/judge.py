"""A program that judges responses with somebody's function; killed, with all it started, when it takes too long.

Started by path, so that it imports that function's module and nothing of holdfast (which would load torch):

    python judge.py package.module:function SEARCH_PATH BYTES
    python judge.py folder/file.py:function SEARCH_PATH BYTES

The function is ours, f(problem, response); TRL's, f(prompts, completions, **columns) -> list; or verl's,
f(data_source, solution_str, ground_truth, extra_info): its parameters' names tell which.

A request on standard input is four bytes of length, that many of JSON, and a number used once. The number is read only
after the function has returned: until then it is in no memory that code under judgement could look through, and the
answer (the number, four bytes of length, JSON, in one write) cannot be made up without it. The first request loads the
function.
"""

import contextlib
import fcntl
import importlib
import importlib.util
import inspect
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
LOOKS = 50
"""How often what a judge started is looked for, until nothing is found."""
KERNEL = 0x00200000
"""The flag of Linux's own threads, which never have an environment."""
NEW = 10.0
"""Seconds for which a process without an environment may be one that is being started."""
LONGEST_ERROR = 1000
"""Characters; an answer must go through a pipe in one piece."""


def load(name: str) -> Callable[[Any, str], Any]:
    """The function of this name, called as judges are, or math-verify's comparison."""
    if name != MATH:
        module, _, attribute = name.partition(":")
        found = _from_file(module) if module.endswith(".py") else importlib.import_module(module)
        return in_our_words(getattr(found, attribute or _only_function(found)))
    from math_verify import parse, verify  # pyright: ignore[reportMissingImports]

    # Their own time limits need signals; here the whole process is killed.
    unlimited: Any = None

    def equal(problem: Any, response: str) -> float:
        gold = parse(f"${problem.answer}$", parsing_timeout=unlimited)
        return float(verify(gold, parse(response, parsing_timeout=unlimited), timeout_seconds=unlimited))

    return equal


def _from_file(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None, "a name that ends in .py has a loader"
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # dataclasses and pickle look a module up by its name
    sys.path.insert(0, str(Path(path).resolve().parent))
    spec.loader.exec_module(found)
    return found


def _only_function(module: Any) -> str:
    own = [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]
    public = [name for name in own if not name.startswith("_")]
    if len(public) != 1:
        raise AttributeError(f"say which function, as in file.py:function; found: {', '.join(public) or 'none'}")
    return public[0]


def in_our_words(function: Callable[..., Any]) -> Callable[[Any, str], Any]:
    """The function as f(problem, response), whichever of the three signatures it has."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # builtins and the like have none
        return function
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def accepted(values: dict[str, Any]) -> dict[str, Any]:
        return values if takes_all else {name: value for name, value in values.items() if name in parameters}

    def like_trl(problem: Any, response: str) -> Any:
        chat = problem.messages is not None
        prompt = [{"role": role, "content": text} for role, text in problem.messages] if chat else problem.prompt
        written = [{"role": "assistant", "content": response}] if chat else response
        columns = {**problem.row, "answer": problem.answer, "solution": problem.solution}
        rows = {"prompts": prompt, "completions": written, **columns}
        (value,) = function(**accepted({name: [value] for name, value in rows.items()}))
        return value

    def like_verl(problem: Any, response: str) -> Any:
        values = {"data_source": problem.environment, "solution_str": response, "ground_truth": problem.answer}
        value = function(**accepted({**values, "extra_info": problem.row}))
        return value["score"] if isinstance(value, dict) else value

    if "completions" in parameters:
        return like_trl
    return like_verl if "solution_str" in parameters else function


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
    for _ in range(LOOKS):  # while they are listed they may start more
        environments = {number: _environment(number) for number in _others()}
        found = [number for number, entries in environments.items() if wanted in entries]
        for number in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(number, signal.SIGKILL)
        if not found:
            # For a moment after a program is started its environment reads as empty.
            if not any(_starts(number) for number, entries in environments.items() if entries in ([], [b""])):
                break
            time.sleep(0.01)
    if leader is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)


def _others() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if folder.name != str(os.getpid())]


def _environment(number: int) -> list[bytes]:
    with contextlib.suppress(OSError):  # gone since, or somebody else's
        return Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
    return []


def _starts(number: int) -> bool:
    """Whether a process without an environment is being started: a live one of this user, and new."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        place = Path(f"/proc/{number}")
        fields = place.joinpath("stat").read_text(errors="replace").rpartition(")")[2].split()
        ours = place.stat().st_uid == os.getuid() and fields[0] not in "ZX" and not int(fields[6]) & KERNEL
        up = float(Path("/proc/uptime").read_text().split()[0])
        return ours and up - int(fields[19]) / os.sysconf("SC_CLK_TCK") < NEW
    return False


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

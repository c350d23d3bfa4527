"""Kills at the file-system events of a run: what is resumed must end as the run that nobody disturbed, to the byte."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from faults.told import Told

RUN: dict[str, Any] = {
    "steps": 4,
    "threads": 1,
    "task": {"name": "ledger", "entries": 1},
    "model": {"hidden": 16, "layers": 1, "heads": 2},
    "warm_start": {"clean_steps": 2, "sloppy_steps": 0, "batch_size": 4},
    "engine": {"precision": "int8", "lag": 1},
    "sampling": {"max_tokens": 8},
    "objective": {"preset": "trm_max+ppo", "delta": 0.5},
    "batch": {"prompts": 2, "group_size": 2},
    "evaluation": {"every": 2, "problems": 2},
    "checkpoint": {"every": 2, "keep": 2, "best": True},
    "log": {"rollouts_every": 1},
}
KINDS = {
    "sync": RUN,
    "async": RUN | {"engine": {"lag": 0}, "async": {"staleness": 2, "segments": 2}},
}
EVENTS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", "fsync"}


def kills(kind: str, count: int, seed: int, folder: Path) -> Told:
    """Kill `count` runs of this kind, spread over all their events, some of them twice; resume and compare each."""
    told, rng = Told(f"kills of {kind} runs"), random.Random(seed)
    settings = folder / f"{kind}.toml"
    settings.write_text(tomli_w.dumps(KINDS[kind]))
    whole = folder / f"{kind}-whole" / "run"
    assert _train(settings, whole, seen=folder / "seen") == 0, "the undisturbed run failed"
    expected, seen = contents(whole), json.loads((folder / "seen").read_text())
    told.facts = {"file-system events of a run": len(seen), **Counter(seen)}
    for number in range(count):
        told.tries += 1
        path = folder / f"{kind}-{number}" / "run"
        places = [number * len(seen) // count]
        if number % 4 == 3:  # and the resumed run once more
            places.append(rng.randrange(len(seen)))
        said = ""
        for place in [*places, None]:
            if place is not None:
                event = f"event {place}" + (f" ({seen[place]})" if place < len(seen) else "")
                said += f"killed at {event}; "
            code = _train(settings, path, place, torn=rng.random() < 0.5)
        trouble = f"exit code {code}" if code else difference(expected, contents(path))
        if trouble:
            told.fault(f"{said}{trouble}")
        shutil.rmtree(path.parent, ignore_errors=True)
    return told


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run folder."""
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


def difference(expected: dict[str, bytes], found: dict[str, bytes]) -> str:
    """In what two folders differ."""
    if lists := sorted(set(expected) ^ set(found)):
        return f"files in one of the folders only: {lists[:5]}"
    other = [name for name in expected if expected[name] != found[name]]
    return f"{', '.join(other[:5])} differ" if other else ""


def _train(settings: Path, path: Path, place: int | None = None, *, torn: bool = False, seen: Any = None) -> int:
    """`holdfast train`, or its resumption where there is a run, in a fork of this process; its exit code."""

    def run() -> int:
        path.parent.mkdir(exist_ok=True)
        without_processes()
        from holdfast.cli import dispatch
        from holdfast.train.keep import stopwatch

        stopwatch._now = lambda: (1.0, 1.0)
        known = (path / "config.toml").is_file()
        watch = _Watch(path, place, torn=torn)
        code = dispatch(["train", *([] if known else [str(settings)]), "--run-dir", str(path), *["--resume"] * known])
        watch.off = True
        if seen is not None:
            seen.write_text(json.dumps(watch.seen))
        return code

    return forked(run, path.parent.with_suffix(".log"))


def forked(work: Callable[[], int], log: Path) -> int:
    """The exit code of work in a fork of this process, negative for a signal that ended it; its words go to `log`."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
    raise AssertionError


class _Watch:
    """Counts what happens to files of the run, and kills this process before event `place`.

    With `torn`, the last write was only begun: the file that is forced to disk loses the end of its last line.
    """

    def __init__(self, path: Path, place: int | None, *, torn: bool) -> None:
        self.root, self.place, self.torn, self.off, self.seen = str(path.parent), place, torn, False, []
        force = os.fsync

        def fsync(descriptor: int) -> None:
            name = Path(f"/proc/self/fd/{descriptor}").readlink()
            if self.torn and self.due and name.is_file():
                tear(name)
            self.event("fsync", name)
            force(descriptor)

        os.fsync = fsync
        sys.addaudithook(self.hear)

    @property
    def due(self) -> bool:
        return self.place is not None and len(self.seen) == self.place

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self.event("open", arguments[0])
        elif event in EVENTS:
            self.event(event, arguments[0])

    def event(self, name: str, path: Any) -> None:
        if self.off or not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(self.root):
            return
        if self.due:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen.append(name)


def tear(name: Path) -> None:
    """Leave half of a file's last line."""
    with name.open("rb+") as file:
        data = file.read()
        start = data.rstrip(b"\n").rfind(b"\n") + 1
        file.truncate((start + len(data)) // 2)


def without_processes() -> None:
    """The engine of an asynchronous run is in this process: its own deaths are tested elsewhere."""
    from holdfast.train.sampling import pipeline
    from holdfast.train.sampling.worker import Scribe

    class Here:
        def __init__(self, config: Any, folder: Path, running: Any) -> None:
            self.scribe, self.asked = Scribe(config, folder, running), []

        def send(self, task: Any) -> None:
            self.asked.append(task)

        def receive(self, timeout: float) -> Any:
            return replace(self.scribe.play(self.asked.pop(0)), cpu_seconds=1.0)

        def end(self) -> None:
            pass

    pipeline._EngineProcess = Here  # pyright: ignore[reportAttributeAccessIssue]

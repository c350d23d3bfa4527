"""Shards on one machine, a process each: progress, a lost worker's shard done once more, and the sum of all."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from holdfast.audit.judge.auditor import Auditor
from holdfast.audit.shards.shard import Shard, audit_shard, dump, load
from holdfast.errors import DataError, HoldfastError

OFTEN = 0.1
"""Seconds between two reports of progress."""
MOST_LOSSES = 1
"""How often a shard is done again whose worker was lost."""

Progress = Callable[[int, int], None]


@dataclass
class _Worker:
    shard: Shard
    process: BaseProcess
    told: Connection
    done: tuple[int, int] = (0, 0)
    lost: int = 0
    error: BaseException | None = None
    state: bytes | None = field(default=None, repr=False)


def audit_in_processes(shards: Sequence[Shard], whole: Auditor, progress: Progress = lambda done, tokens: None) -> None:
    """Audit each shard in a process of its own, all at once, and add them to `whole`; `progress` is told of all.

    Raises:
        DataError: a shard whose worker was lost twice (killed, say for memory), by name; what a worker itself raises.
    """
    running = [_start(shard) for shard in shards]
    try:
        while running:
            for connection in wait([worker.told for worker in running]):
                worker = next(w for w in running if w.told is connection)
                if _hear(worker):
                    continue
                running.remove(worker)
                worker.process.join()
                if worker.error is not None:
                    raise worker.error
                if worker.state is None:
                    running.append(_again(worker))
                else:
                    whole.merge(load(worker.state))
            for_all = [(whole.reading.bytes_read, whole.facts.tokens), *(worker.done for worker in running)]
            progress(*map(sum, zip(*for_all, strict=True)))
    finally:
        for worker in running:
            worker.process.kill()
            worker.process.join()


def _start(shard: Shard, lost: int = 0) -> _Worker:
    context = _context()
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(shard, tell), name=str(shard), daemon=True)
    process.start()
    tell.close()
    return _Worker(shard, process, told, lost=lost)


def _context() -> Any:
    """A fork starts at once; it is safe only while no other thread runs."""
    forks = sys.platform == "linux" and threading.active_count() == 1
    return multiprocessing.get_context("fork" if forks else "spawn")


def _again(worker: _Worker) -> _Worker:
    if worker.lost >= MOST_LOSSES:
        code = worker.process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"gone with exit code {code}"
        raise DataError(
            f"the worker of {worker.shard} was {how}, and so was the one that did it again: if memory ran out, use "
            "fewer workers; if one of these files is at fault, audit them one by one"
        )
    return _start(worker.shard, worker.lost + 1)


def _hear(worker: _Worker) -> bool:
    """Take in one message; False where the worker has no more to say."""
    try:
        what, value = worker.told.recv()
    except (EOFError, OSError):
        return False
    if what == "at":
        worker.done = value
    elif what == "error":
        worker.error = value
    else:
        worker.state = value
    return True


def _work(shard: Shard, tell: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is the parent's to handle
    last = time.monotonic()

    def report(done: int, tokens: int) -> None:
        nonlocal last
        if time.monotonic() - last > OFTEN:
            last = time.monotonic()
            tell.send(("at", (done, tokens)))

    with suppress(BrokenPipeError):  # nobody listens any more
        try:
            state = dump(audit_shard(shard, report))
        except HoldfastError as error:
            tell.send(("error", error))
        else:
            tell.send(("state", state))

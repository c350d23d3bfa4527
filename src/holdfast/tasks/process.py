"""The trainer's end of a judge: one process, one question at a time, each bounded in time."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from holdfast.errors import ConfigError
from holdfast.tasks import judge

START = 120.0
"""Seconds that importing the function may take."""

STARTS = 5
"""Times that a process is started again which was killed before it had imported the function."""

KEPT = 1 << 14
"""Bytes that may hold the beginning of an answer; what was written before them is junk."""


class Judge:
    """A process that runs `function`, in a group of its own that is killed as a whole."""

    def __init__(self, function: str, *, memory_gib: float = 0.0) -> None:
        """Start it and wait until the function is imported.

        Raises:
            ConfigError: the function cannot be imported.
        """
        answer, late = None, False
        for _ in range(STARTS):
            self._start(function, memory_gib)
            answer, late = self.exchange(None, START)
            if answer is not None and not answer["error"]:
                return
            self.end()
            if answer is not None or late or self.process.returncode >= 0:
                break  # the module's own doing; whatever kills from outside may not do so again
        silent = f"its import was killed by signal {-self.process.returncode}, {STARTS} times in a row (memory?)"
        if late:
            silent = f"its import took more than {START:g} seconds"
        elif self.process.returncode >= 0:
            silent = "its import ended the process"
        raise ConfigError(
            f"task.reward = {function!r} cannot be imported ({silent if answer is None else answer['error']}); write "
            "package.module:function or file.py:function, and start holdfast where it can be found"
        )

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self.process.poll() is None

    def exchange(self, request: dict[str, Any] | None, timeout: float) -> tuple[dict[str, Any] | None, bool]:
        """Ask; None where no answer came, and True where that was for lack of time.

        Anything but the answer to this very question is dropped.
        """
        text, nonce = json.dumps(request, default=str).encode(), secrets.token_bytes(judge.NONCE_BYTES)
        pending = judge.LENGTH.pack(len(text)) + text + nonce
        deadline = time.monotonic() + timeout
        wakes = select.poll()
        wakes.register(self.answers, select.POLLIN)
        wakes.register(self.requests, select.POLLOUT)
        found, writing = b"", True
        while True:
            ended, over = not self.alive, time.monotonic() > deadline  # before the last look at what it wrote
            try:
                pending = self._write(pending)
                if not pending and writing:
                    wakes.unregister(self.requests)
                    writing = False
                piece = self._read()
            except OSError:
                return None, False
            found += piece or b""
            if (answer := _answer(found, nonce)) is not None:
                return answer, False
            found = found[-KEPT:]
            if piece == b"" or (ended and piece is None):
                return None, False
            if over:
                return None, True
            if piece is None:
                # Never for long: a process that it forked may hold the pipe open after its end.
                wakes.poll(50)

    def end(self) -> None:
        """Kill it and what it started."""
        # The number of a process whose end was noticed may be another one's by now.
        judge.kill_started(self.process.pid if self.process.returncode is None else None, self.mark)
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _start(self, function: str, memory_gib: float) -> None:
        path = [str(Path.cwd()), *(entry for entry in sys.path if entry)]
        self.mark = secrets.token_hex(8)
        self.process = subprocess.Popen(
            [sys.executable, judge.__file__, function, json.dumps(path), str(int(memory_gib * (1 << 30)))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=os.environ | {judge.MARK: self.mark},
            start_new_session=True,  # a Ctrl-C is for the trainer: it must not look like a wrong answer
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.requests, self.answers = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.requests, False)
        os.set_blocking(self.answers, False)

    def _write(self, pending: bytes) -> bytes:
        """What is left to be written."""
        if not pending:
            return pending
        try:
            return pending[os.write(self.requests, pending) :]
        except BlockingIOError:
            return pending
        except BrokenPipeError:
            return b""  # it may have answered all the same; if not, its end is noticed

    def _read(self) -> bytes | None:
        """What there is: None where nothing is, nothing where nothing will ever be."""
        try:
            return os.read(self.answers, 1 << 16)
        except BlockingIOError:
            return None


def _answer(found: bytes, nonce: bytes) -> dict[str, Any] | None:
    """The answer that begins with the nonce, once it is whole."""
    start = found.find(nonce)
    if start < 0:
        return None
    body = found[start + len(nonce) :]
    if len(body) < judge.LENGTH.size:
        return None
    size = judge.LENGTH.unpack(body[: judge.LENGTH.size])[0]
    if len(body) < judge.LENGTH.size + size:
        return None
    return json.loads(body[judge.LENGTH.size : judge.LENGTH.size + size])

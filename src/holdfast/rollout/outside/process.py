"""A server process: started on a model folder, waited for, stopped, started again on other weights.

It lives as long as this process (`holdfast.rollout.outside.guard`), and is never mistaken for another one's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from holdfast.errors import ConfigError, EngineError
from holdfast.rollout.outside import guard
from holdfast.rollout.outside.http import HttpClient

FREE = 30.0
"""Seconds in which a port is waited for: a server whose trainer was killed just now takes some to end."""


class ServerProcess:
    """Runs `command`, in which "{folder}" stands for the model folder, until `stop`; its output goes to `log`."""

    def __init__(
        self, command: Sequence[str], client: HttpClient, log: Path, *, environment: Mapping[str, str] | None = None
    ) -> None:
        """Nothing is started yet.

        Raises:
            ConfigError: the command does not name the folder.
        """
        if not any("{folder}" in part for part in command):
            raise ConfigError(
                f"engine.command = {' '.join(command)!r} must contain {{folder}}, which becomes the model folder, "
                "e.g. vllm serve {folder} --host 127.0.0.1 --port 8000"
            )
        self.command, self.client, self.log = tuple(command), client, log
        self.environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, folder: Path, *, patience: float = 600.0) -> None:
        """Serve this folder, once what was served before has stopped; returns when the server answers.

        Raises:
            EngineError: something else listens there; the process ends, or does not answer within `patience` seconds;
                with the end of its output.
        """
        self.stop()
        self._port_is_free()
        command = [part.replace("{folder}", str(folder)) for part in self.command]
        if shutil.which(command[0], path=self.environment.get("PATH")) is None:
            raise EngineError(f"the server cannot be started with {' '.join(command)!r}: no program {command[0]!r}")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, guard.__file__, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + patience
        probe = replace(self.client, timeout=5.0, retries=0)
        while time.monotonic() < deadline:
            if (code := self._process.poll()) is not None:
                self.stop()  # what it started may go on
                raise EngineError(f"the server ended with exit code {code} while starting; {self._tail()}")
            try:
                if probe.get("/v1/models") is not None and self.alive:
                    return
            except EngineError:
                pass
            time.sleep(0.2)
        self.stop()
        raise EngineError(f"the server did not answer at {self.client.url} within {patience:g} s; {self._tail()}")

    def stop(self) -> None:
        """End the process and those that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, how)
            except ProcessLookupError:
                break
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                continue
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def _port_is_free(self) -> None:
        """Wait until nothing listens where the server will.

        Raises:
            EngineError: something does; it would answer in our server's place.
        """
        parts = urlsplit(self.client.url)
        place = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        deadline = time.monotonic() + FREE
        while _listens(place):
            if time.monotonic() >= deadline:
                raise EngineError(
                    f"something listens at {self.client.url} already, perhaps the server of a run that was killed: "
                    "end it, or choose another port in engine.url and engine.command"
                )
            time.sleep(0.2)

    def _tail(self, lines: int = 15) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        return f"the end of {self.log}:\n" + "\n".join(text)


def _listens(place: tuple[str, int]) -> bool:
    try:
        socket.create_connection(place, timeout=2.0).close()
    except OSError:
        return False
    return True

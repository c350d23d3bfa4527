"""A server process: started on a model folder, waited for, stopped, started again on other weights."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from holdfast.errors import ConfigError, EngineError
from holdfast.rollout.outside.http import HttpClient


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
                "e.g. vllm serve {folder} --port 8000"
            )
        self.command, self.client, self.log = tuple(command), client, log
        self.environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, folder: Path, *, patience: float = 600.0) -> None:
        """Serve this folder, once what was served before has stopped; returns when the server answers.

        Raises:
            EngineError: the process ends, or does not answer within `patience` seconds; with the end of its output.
        """
        self.stop()
        command = [part.replace("{folder}", str(folder)) for part in self.command]
        with self.log.open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    command, stdout=log, stderr=subprocess.STDOUT, env=self.environment, start_new_session=True
                )
            except OSError as error:
                raise EngineError(f"the server cannot be started with {' '.join(command)!r}: {error}") from error
        deadline = time.monotonic() + patience
        probe = replace(self.client, timeout=5.0, retries=0)
        while time.monotonic() < deadline:
            if (code := self._process.poll()) is not None:
                raise EngineError(f"the server ended with exit code {code} while starting; {self._tail()}")
            try:
                if probe.get("/v1/models") is not None:
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

    def _tail(self, lines: int = 15) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        return f"the end of {self.log}:\n" + "\n".join(text)

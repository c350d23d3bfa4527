"""JSON over HTTP to an inference server: bounded waiting, bounded retries, errors that say what to do."""

from __future__ import annotations

import http.client
import json
import os
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from holdfast.errors import ConfigError, EngineError


@dataclass(frozen=True)
class HttpClient:
    """Requests to one server, from any number of threads.

    A request is tried again where the server may recover and asking twice does no harm: no connection, status 429 or
    5xx, an answer that breaks off. `timeout` bounds each try in seconds; a try that takes longer is not repeated,
    because a server that hangs once hangs again. VLLM_API_KEY, if set, is sent as the bearer token.
    """

    url: str
    timeout: float = 600.0
    retries: int = 3
    backoff: float = 0.5

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise ConfigError(f"engine.url = {self.url!r}: write it like http://127.0.0.1:8000, without a path")
        if self.timeout <= 0 or self.retries < 0:
            raise ConfigError(
                f"engine.timeout = {self.timeout}, engine.retries = {self.retries}: the first must be above 0 seconds, "
                "the second at least 0"
            )

    def get(self, path: str) -> Any:
        """The answer to GET; None where the server has no such path."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to POST; None where the server has no such path."""
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        trouble = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.backoff * 2 ** (attempt - 1))
            try:
                status, text = self._once(method, path, body)
            except TimeoutError:
                raise EngineError(
                    f"{self.url}{path} did not answer within {self.timeout:g} s: the server hangs, or responses take "
                    "longer (raise engine.timeout)"
                ) from None
            except (OSError, http.client.HTTPException) as error:
                trouble = f"{type(error).__name__}: {error}"
                continue
            if status == 404:
                return None
            if 400 <= status < 500 and status != 429:
                raise EngineError(f"{self.url}{path} refused the request with status {status}: {_message(text)}")
            if status >= 300:
                trouble = f"status {status}: {_message(text)}"
                continue
            if not text.strip():
                return {}
            try:
                return json.loads(text)
            except ValueError:
                trouble = f"the answer of {len(text)} characters is not whole JSON, it ends with {text[-40:]!r}"
        tries = "once" if self.retries == 0 else f"{self.retries + 1} times"
        raise EngineError(
            f"{self.url}{path} was asked {tries} and failed, the last time with {trouble}; look into the server's log, "
            "or raise engine.retries if it needs longer to recover"
        )

    def _once(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, str]:
        """Status and text of one try."""
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        deadline = time.monotonic() + self.timeout
        connection = kind(parts.hostname or "", parts.port, timeout=self.timeout)
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            with connection.getresponse() as response:
                pieces = []
                # Piece by piece: a server that trickles must not outlive the deadline either.
                while piece := response.read1(1 << 16):
                    pieces.append(piece)
                    if time.monotonic() > deadline:
                        raise TimeoutError
                return response.status, b"".join(pieces).decode(errors="replace")
        finally:
            connection.close()


def _message(text: str) -> str:
    """The message in an OpenAI-style error, or the start of whatever it is."""
    try:
        found = json.loads(text)
    except ValueError:
        found = text
    while isinstance(found, dict) and (inner := found.get("error") or found.get("message") or found.get("detail")):
        found = inner
    return str(found)[:300] or "no message"

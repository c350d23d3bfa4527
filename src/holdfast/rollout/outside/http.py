"""JSON over HTTP to an inference server: bounded waiting, retries and sizes, errors that say what to do."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from holdfast.errors import ConfigError, EngineError

LARGEST = 1 << 26
"""Bytes of an answer, unless a request says how many it may have."""


def address_trouble(url: str) -> str | None:
    """Why an address cannot be used, in words that repeat no password; None where it can.

    It is written into config.toml and messages, and a name or password in it with it.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018
        if "@" in parts.netloc:
            return (
                f"url = '{parts.scheme}://...@{parts.netloc.rpartition('@')[2]}' holds a name or password, which files "
                "and messages would repeat: leave it out, and give the server's key as VLLM_API_KEY"
            )
        if parts.scheme in ("http", "https") and parts.hostname and not parts.path.strip("/"):
            return None
    except ValueError:
        if "@" in url:
            url = "..."
    return f"url = {url!r}: write it like http://127.0.0.1:8000, without a path"


@dataclass(frozen=True)
class HttpClient:
    """Requests to one server, from any number of threads.

    A request is tried again where the server may recover and asking twice does no harm: no connection, status 429 or
    5xx, an answer that breaks off. `timeout` bounds each try in seconds, from the connection to the last byte; a try
    that takes longer is not repeated, because a server that hangs once hangs again. VLLM_API_KEY, if set, is sent as
    the bearer token.
    """

    url: str
    timeout: float = 600.0
    retries: int = 3
    backoff: float = 0.5

    def __post_init__(self) -> None:
        if (trouble := address_trouble(self.url)) is not None:
            raise ConfigError(f"engine.{trouble}")
        if self.timeout <= 0 or self.retries < 0:
            raise ConfigError(
                f"engine.timeout = {self.timeout}, engine.retries = {self.retries}: the first must be above 0 seconds, "
                "the second at least 0"
            )

    def get(self, path: str) -> dict[str, Any] | None:
        """The object in answer to GET; None where the server has no such path.

        Raises:
            EngineError: no answer in time, a refusal, or answers that are none.
        """
        return self._ask("GET", path, None, LARGEST)

    def post(self, path: str, body: dict[str, Any], *, largest: int = LARGEST) -> dict[str, Any] | None:
        """The object in answer to POST, of at most `largest` bytes; None where the server has no such path.

        Raises:
            EngineError: no answer in time, a refusal, or answers that are none.
        """
        return self._ask("POST", path, body, largest)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None, largest: int) -> dict[str, Any] | None:
        trouble = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.backoff * 2 ** (attempt - 1))
            try:
                status, text = self._once(method, path, body, largest)
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
                found = json.loads(text)
            except (ValueError, RecursionError):
                trouble = f"the answer of {len(text)} characters is not whole JSON, it ends with {text[-40:]!r}"
                continue
            if isinstance(found, dict):
                return found
            trouble = f"the answer is no JSON object but {text[:40]!r}"
        tries = "once" if self.retries == 0 else f"{self.retries + 1} times"
        raise EngineError(
            f"{self.url}{path} was asked {tries} and failed, the last time with {trouble}; look into the server's log, "
            "or raise engine.retries if it needs longer to recover"
        )

    def _once(self, method: str, path: str, body: dict[str, Any] | None, largest: int) -> tuple[int, str]:
        """Status and text of one try.

        Raises:
            TimeoutError: it took too long.
            EngineError: the answer is larger than can be right.
        """
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=self.timeout)
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        expired = threading.Event()
        # A time limit of the socket begins anew with every byte; this one does not, whatever trickles.
        timer = threading.Timer(self.timeout, _expire, (connection, expired))
        timer.daemon = True
        timer.start()
        try:
            connection.connect()
            if expired.is_set():
                raise TimeoutError
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            with connection.getresponse() as response:
                status, text = response.status, _text(response, largest, f"{self.url}{path}")
            if expired.is_set():  # without a length, a body that was cut off looks whole
                raise TimeoutError
            return status, text
        except (OSError, http.client.HTTPException, AttributeError, ValueError):
            if expired.is_set():  # the socket was shut in the middle of something
                raise TimeoutError from None
            raise
        finally:
            timer.cancel()
            connection.close()


def _expire(connection: http.client.HTTPConnection, expired: threading.Event) -> None:
    """Wake whoever waits for this connection."""
    expired.set()
    if (sock := connection.sock) is not None:  # else it is still connecting, which has the same limit of its own
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _text(response: http.client.HTTPResponse, largest: int, where: str) -> str:
    """The whole body.

    Raises:
        IncompleteRead: it is shorter than announced.
        EngineError: it is larger than `largest` bytes.
    """
    pieces, size = [], 0
    while size <= largest and (piece := response.read1(1 << 16)):
        pieces.append(piece)
        size += len(piece)
    if max(size, response.length or 0) > largest:
        raise EngineError(
            f"{where} answers with more than {largest} bytes, which no answer to this request has: is it an "
            "OpenAI-compatible server?"
        )
    if response.length:
        raise http.client.IncompleteRead(b"".join(pieces), response.length)
    return b"".join(pieces).decode(errors="replace")


def _message(text: str) -> str:
    """The message in an OpenAI-style error, or the start of whatever it is."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = text
    while isinstance(found, dict) and (inner := found.get("error") or found.get("message") or found.get("detail")):
        found = inner
    return str(found)[:300] or "no message"

"""Servers and reward functions of strangers: each is an error or a failed reward in bounded time, and nothing else."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from faults.told import Told
from holdfast.errors import EngineError
from holdfast.rollout.outside.http import HttpClient
from holdfast.tasks.base import Problem
from holdfast.tasks.verify import Isolated

Talk = Callable[[socket.socket], None]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
LONG = 60.0
"""Seconds within which every request must have ended; what a starved machine needs for one of half a second."""


def says(*pieces: bytes, pause: float = 0.0) -> Talk:
    """A server that says this, piece by piece, and hangs up."""

    def talk(connection: socket.socket) -> None:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)

    return talk


def forever(start: bytes, piece: bytes, pause: float = 0.0) -> Talk:
    """A server that goes on until nobody listens."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(piece)
            time.sleep(pause)

    return talk


def resets(connection: socket.socket) -> None:
    """The connection is torn down in the middle of a status line."""
    connection.sendall(b"HTTP/1.1 2")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def body(text: bytes, length: int | None = None) -> bytes:
    """A whole answer with this body, and this or its true length."""
    return OK + f"Content-Length: {len(text) if length is None else length}\r\n\r\n".encode() + text


SERVERS: dict[str, Talk] = {
    "hangs up": says(),
    "says nothing": says(b"", pause=2.0),
    "resets": resets,
    "no HTTP": says(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "another version": says(b"HTTP/9.9 200 OK\r\n\r\n{}"),
    "status of letters": says(b"HTTP/1.1 abc OK\r\n\r\n{}"),
    "status 999": says(b"HTTP/1.1 999 Odd\r\nContent-Length: 2\r\n\r\n{}"),
    "trickles its status": forever(b"", b"H", 0.05),
    "trickles its headers": forever(OK, b"X: y\r\n", 0.05),
    "trickles its body": forever(OK + b"Content-Length: 100000\r\n\r\n", b" ", 0.05),
    "trickles chunks": forever(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", 0.05),
    "endless header": forever(OK + b"X: ", b"a" * 65536),
    "endless headers": forever(OK, b"X: y\r\n" * 1000),
    "endless body": forever(OK + b"\r\n", b" " * 65536),
    "endless chunks": forever(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"4\r\n    \r\n" * 1000),
    "endless 100": forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "half of a body": says(body(b'{"a": 1}', 16)),
    "half that reads well": says(body(b"{}", 4)),
    "negative length": says(body(b'{"a"', -1)),
    "length of letters": says(OK + b"Content-Length: x\r\n\r\n{"),
    "announces a terabyte": says(body(b"{}", 1 << 40)),
    "chunk of letters": says(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"),
    "chunk that is cut off": says(OK + b"Transfer-Encoding: chunked\r\n\r\nff\r\n{}"),
    "deep JSON": says(body(b"[" * 500_000)),
    "deep objects": says(body(b'{"a":' * 200_000)),
    "a list": says(body(b"[1]")),
    "a number without end": says(body(b"1" * 100_000)),
    "no UTF-8": says(body(b'\xff\xfe{"a": 1}')),
    "half an object": says(body(b'{"a": ')),
    "text after the object": says(body(b"{} {}")),
    "redirects": says(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"),
    "refuses with escapes": says(b"HTTP/1.1 400 No\r\nContent-Length: 5\r\n\r\n\x1b[31m"),
    "deep refusal": says(b"HTTP/1.1 400 No\r\nContent-Length: 100000\r\n\r\n" + b'{"error":' * 11_111 + b"1"),
    "too many requests": says(b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\n\r\n"),
    "its own fault": says(b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\n{}"),
    "gzip nobody asked for": says(OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00"),
}


def servers(count: int) -> Told:
    """Ask each of the first `count` servers; none gives an answer, so each must be an EngineError in time."""
    told = Told("hostile servers")
    for name, talk in list(SERVERS.items())[:count]:
        told.tries += 1
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=_serve, args=(listener, talk), daemon=True).start()
            client = HttpClient(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=1.0, retries=1, backoff=0.01)
            started = time.monotonic()
            try:
                told.fault(f"{name}: answered {str(client.post('/v1/completions', {'prompt': [1]}))[:80]}")
            except EngineError:
                pass
            except Exception as error:
                told.fault(f"{name}: {type(error).__name__}: {error}")
            if (took := time.monotonic() - started) > LONG:
                told.fault(f"{name}: held the client for {took:.0f} s")
            listener.shutdown(socket.SHUT_RDWR)
    return told


def _serve(listener: socket.socket, talk: Talk) -> None:
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_talk, args=(connection, talk), daemon=True).start()


def _talk(connection: socket.socket, talk: Talk) -> None:
    with connection, suppress(OSError):
        connection.recv(65536)
        talk(connection)


START = """
import ctypes, gc, json, os, signal, subprocess, sys, threading, time

def everywhere(text):
    for number in range(3, 70000):
        try:
            os.write(number, text)
        except OSError:
            pass

class Liar(float):
    def __float__(self):
        raise SystemExit(0)
"""
FUNCTIONS: dict[str, tuple[str, float | None]] = {
    "raises": ("raise ValueError(response)", 0.0),
    "raises no Exception": ("raise BaseException", 0.0),
    "exits": ("sys.exit(0)", 0.0),
    "exits at once": ("os._exit(0)", 0.0),
    "kills itself": ("os.kill(os.getpid(), 9)", 0.0),
    "stops itself": ("os.kill(os.getpid(), signal.SIGSTOP)", 0.0),
    "aborts": ("os.abort()", 0.0),
    "reads no memory": ("ctypes.string_at(0)", 0.0),
    "loops": ("while True: pass", 0.0),
    "loops whatever happens": ("while True:\n  try:\n   time.sleep(1)\n  except BaseException: pass", 0.0),
    "ignores signals": ("signal.signal(15, signal.SIG_IGN)\n while True: time.sleep(1)", 0.0),
    "recurses": ("return f(problem, response)", 0.0),
    "wants all memory": ("return float(len(bytearray(1 << 40)))", 0.0),
    "returns nothing": ("return None", 0.0),
    "returns text": ("return 'one'", 0.0),
    "returns a list": ("return [1.0]", 0.0),
    "returns NaN": ("return float('nan')", 0.0),
    "returns infinity": ("return float('inf')", 0.0),
    "returns too much": ("return 1e300", 0.0),
    "returns what exits": ("return Liar(1.0)", 0.0),
    "returns text that is a number": ("return '0.5'", 0.5),
    "returns a truth": ("return True", 1.0),
    "prints": ("print('{\"value\": 100}' * 100000)\n return 0.5", 0.5),
    "closes its output": ("os.close(1); os.close(2)\n return 0.5", 0.5),
    "reads its input": ("sys.stdin.read()\n return 0.5", 0.5),
    "closes everything": ("os.closerange(0, 70000)\n return 0.5", 0.0),
    "writes everywhere": ("everywhere(b'{\"value\": 100.0}')\n return 0.5", None),
    "writes lengths everywhere": ("everywhere(b'\\x00\\x00\\x00\\x0e{\"value\": 100}')\n return 0.5", None),
    "a child returns": ("os.fork()\n return 0.5", 0.5),
    "a child stays": ("if not os.fork(): time.sleep(3600)\n return 0.5", 0.5),
    "children of children": ("for _ in range(4): os.fork()\n return 0.5", 0.5),
    "a program stays": ("subprocess.Popen(['sleep', '3600'])\n return 0.5", 0.5),
    "a daemon stays": ("subprocess.Popen(['sleep', '3600'], start_new_session=True)\n return 0.5", 0.5),
    "waits for a program": ("subprocess.run(['sleep', '3600'])", 0.0),
    "a thread stays": ("threading.Thread(target=time.sleep, args=(3600,)).start()\n return 0.5", 0.5),
    "leaves the folder": ("os.chdir('/')\n return 0.5", 0.5),
    "changes its name": ("sys.modules.clear()\n return 0.5", 0.5),
    "an odd message": ("raise ValueError('\\ud800' + '\\x1b[31m' * 10000)", 0.0),
}


def rewards(count: int, folder: Path) -> Told:
    """Ask each of the first `count` functions, then an honest one in the same processes' place."""
    told = Told("hostile reward functions")
    chosen = list(FUNCTIONS.items())[:count]
    source = START
    for number, (_, (code, _)) in enumerate(chosen):
        lines = code.replace("f(problem", f"f{number}(problem").split("\n")
        source += f"\ndef f{number}(problem, response):\n if response == 'honest': return 0.25\n " + "\n ".join(
            line.removeprefix(" ") for line in lines
        )
    (folder / "hostile_rewards.py").write_text(source + "\n")
    problem, before = Problem("1+1=", "2", None, "sums"), _sleepers()
    for number, (name, (_, expected)) in enumerate(chosen):
        told.tries += 1
        scorer = Isolated(f"hostile_rewards:f{number}", timeout=5.0, workers=1)
        try:
            odd, honest = scorer([problem] * 2, ["odd", "honest"])
            right = odd.value in ((0.0, 0.5) if expected is None else (expected,))
            if not right or honest.value != 0.25:
                told.fault(f"{name}: rewards {odd.value:g} and {honest.value:g}, {odd.error}; {honest.error}")
        except Exception as error:
            told.fault(f"{name}: {type(error).__name__}: {error}")
        finally:
            scorer.close()
    deadline = time.monotonic() + LONG
    while (left := _sleepers() - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    if left:
        told.fault(f"processes are left over: {sorted(left)}")
    return told


def _sleepers() -> set[int]:
    """Judges, and what they started."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"HOLDFAST_JUDGE=" in (place / "environ").read_bytes() and int(place.name) != os.getpid():
                found.add(int(place.name))
    return found

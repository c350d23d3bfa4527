"""A server's process: how it is started and waited for, what is left of it, and what it said last."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from holdfast.errors import EngineError
from holdfast.rollout.outside import process as module
from holdfast.rollout.outside.http import HttpClient
from holdfast.rollout.outside.process import ServerProcess


@dataclass(frozen=True)
class Client(HttpClient):
    """Answers once `path` is there; writes down how it was asked."""

    path: Path = Path()
    asked: list = field(default_factory=list)

    def get(self, path):
        self.asked.append((path, self.timeout, self.retries))
        if not self.path.exists():
            raise EngineError("nobody there")
        return {}


@pytest.fixture
def serve(tmp_path):
    """serve(source of a Python program, *its arguments) -> process, not started; stopped in the end."""
    made = []

    def make(source, *arguments, **options):
        command = [sys.executable, "-c", source, *arguments, "--model={folder}"]
        made.append(
            ServerProcess(command, Client("http://somewhere", path=tmp_path / "up"), tmp_path / "log", **options)
        )
        return made[-1]

    yield make
    for process in made:
        process.stop()


def until(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_folder_may_be_part_of_an_argument_and_own_variables_come_first(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("MINE", "another's")
    process = serve("import os, sys; sys.exit(sys.argv[1] + ' ' + os.environ['MINE'])", environment={"MINE": "own"})
    with pytest.raises(EngineError, match=f"--model={tmp_path / 'weights'} own"):
        process.start(tmp_path / "weights")


def test_a_process_that_ends_well_while_starting_has_ended(serve, tmp_path):
    with pytest.raises(EngineError, match="ended with exit code 0 while starting"):
        serve("pass").start(tmp_path, patience=10.0)


def test_it_is_asked_briefly_and_once_at_a_time_until_patience_is_over(serve, tmp_path, monkeypatch):
    """On a clock of its own: 2 seconds in steps of 0.2, less the rounding of their sum."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + seconds))
    monkeypatch.setattr(module, "time", clock)
    process = serve("import time; time.sleep(60)")
    with pytest.raises(EngineError, match="did not answer at http://somewhere within 2 s"):
        process.start(tmp_path, patience=2.0)
    assert set(process.client.asked) == {("/v1/models", 5.0, 0)}
    assert len(process.client.asked) in (10, 11)
    monkeypatch.setattr(os, "killpg", lambda *_: pytest.fail("it was not ended"))
    process.stop()


def test_the_last_words_are_the_last_lines_whatever_bytes_they_hold(serve, tmp_path):
    (tmp_path / "log").write_text("the run before\n")
    source = "import os, sys; os.write(1, b''.join(b'<%d>\\n' % i for i in range(20)) + b'\\xff'); sys.exit(3)"
    with pytest.raises(EngineError) as raised:
        serve(source).start(tmp_path)
    assert str(raised.value).endswith("log:\n" + "".join(f"<{i}>\n" for i in range(6, 20)) + "\ufffd")
    assert (tmp_path / "log").read_bytes().startswith(b"the run before\n<0>")


def test_it_may_end_in_its_own_way_and_is_ended_once(serve, tmp_path, monkeypatch):
    source = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: sys.exit("goodbye"))
Path(sys.argv[1]).touch()
time.sleep(60)
"""
    process = serve(source, str(tmp_path / "up"))
    process.start(tmp_path)
    process.stop()
    assert "goodbye" in process.log.read_text()
    monkeypatch.setattr(os, "killpg", lambda *_: pytest.fail("the number may be another process's by now"))
    process.stop()


def test_what_does_not_end_is_killed_with_all_that_it_started(serve, tmp_path, monkeypatch):
    """The program and its child hold a pipe open and ignore SIGTERM; nobody waits 20 seconds for them here."""
    source = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pipe = open(sys.argv[2], "w")
if os.fork():
    Path(sys.argv[1]).touch()
time.sleep(20)
"""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    process = serve(source, str(tmp_path / "up"), str(tmp_path / "pipe"))
    process.start(tmp_path)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    wait, ended = subprocess.Popen.wait, []

    def impatient(self, timeout=None):
        ended.append(wait(self, timeout=timeout and 0.2))

    monkeypatch.setattr(subprocess.Popen, "wait", impatient)
    process.stop()
    assert ended == [-signal.SIGKILL]

    def closed():
        try:
            return os.read(reader, 1) == b""
        except BlockingIOError:
            return False

    until(closed)
    os.close(reader)


def test_another_server_on_the_port_is_not_taken_for_ours(tmp_path, monkeypatch):
    """It would answer at once, and with other weights."""
    monkeypatch.setattr(module, "FREE", 0.5)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        url = f"http://127.0.0.1:{other.getsockname()[1]}"
        command = [sys.executable, "-c", "import time; time.sleep(60)", "{folder}"]
        (tmp_path / "up").touch()
        process = ServerProcess(command, Client(url, path=tmp_path / "up"), tmp_path / "log")
        with pytest.raises(EngineError, match=f"something listens at {url} already"):
            process.start(tmp_path)
        assert not process.alive and not (tmp_path / "log").exists()
    process.start(tmp_path)
    assert process.alive
    process.stop()
    assert not process.alive


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.slow
def test_a_server_ends_with_a_trainer_that_was_killed(tmp_path, stubborn):
    """The server writes its number and its child's; with `stubborn` both ignore SIGTERM, for 20 seconds."""
    source = f"""
import os, signal, time
if {stubborn}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child:
    open({str(tmp_path / "new")!r}, "w").write(f"{{os.getpid()}} {{child}}")
    os.rename({str(tmp_path / "new")!r}, {str(tmp_path / "up")!r})
time.sleep(3600)
"""
    trainer = f"""
import sys, time
from pathlib import Path
from holdfast.rollout.outside import process
from holdfast.rollout.outside.http import HttpClient

command = [sys.executable, "-c", {source!r}, "{{folder}}"]
server = process.ServerProcess(command, HttpClient("http://127.0.0.1:1"), Path({str(tmp_path / "log")!r}))
server.start(Path("/"), patience=3600.0)
"""
    mine = subprocess.Popen([sys.executable, "-c", trainer], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    until((tmp_path / "up").is_file)
    numbers = [int(number) for number in (tmp_path / "up").read_text().split()]
    mine.kill()
    mine.wait()
    until(lambda: not any(runs(number) for number in numbers))


def runs(number):
    try:
        return "Z" not in Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False

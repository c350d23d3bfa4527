"""What a judge leaves behind is found and ended."""

import signal
import subprocess
from pathlib import Path

import pytest

from holdfast.tasks import judge


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="Linux finds processes in /proc")
def test_a_program_that_is_only_just_started_is_found(monkeypatch):
    """Between exec and its first instruction a process reads as one without an environment."""
    mark = "just-started"
    child = subprocess.Popen(["sleep", "600"], env={judge.MARK: mark}, start_new_session=True)
    real, asked = judge._environment, []

    def not_yet(number):
        asked.append(number)
        return [b""] if number == child.pid and asked.count(child.pid) <= 3 else real(number)

    monkeypatch.setattr(judge, "_environment", not_yet)
    try:
        judge.kill_started(None, mark)
        assert child.wait(timeout=60) == -signal.SIGKILL
    finally:
        child.kill()

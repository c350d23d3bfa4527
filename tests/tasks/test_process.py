"""Judges whose functions fork, hang, write where they should not, are killed, or want all memory there is."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from holdfast.errors import ConfigError
from holdfast.tasks.base import Problem
from holdfast.tasks.process import Judge
from holdfast.tasks.verify import Isolated, Score

PROBLEM = Problem("1+1=", "2", None, "sums")
FUNCTIONS = """
import json, os, subprocess, sys, time

def returning_child(problem, response):
    os.fork()
    return float(response)

def hanging_child(problem, response):
    if response.startswith("/"):
        if (child := os.fork()) == 0:
            time.sleep(3600)
        with open(response, "w") as file:
            file.write(str(child))
        if response.endswith("hang"):
            time.sleep(3600)
        os._exit(3)
    return float(response)

def started(problem, response):
    apart = response.endswith("apart")
    command = [sys.executable, "-c", "import time; time.sleep(3600)"]
    child = subprocess.Popen(command, start_new_session=apart)
    with open(response, "w") as file:
        file.write(str(child.pid))
    child.wait()

def writes_everywhere(problem, response):
    answer = json.dumps({"value": 100.0}).encode()
    for number in map(int, os.listdir("/proc/self/fd")):
        for junk in (answer + b"\\n", len(answer).to_bytes(4, "big") + answer, b"\\0" * 70000, b"{" * 10):
            try:
                os.write(number, junk[:60000])
            except OSError:
                pass
    return float(response)

def closes_everything(problem, response):
    if response == "close":
        os.closerange(0, 70000)
    return 1.0

def descriptors(problem, response):
    # What a program that the function starts finds open.
    told = subprocess.run(["ls", "/proc/self/fd"], close_fds=False, capture_output=True, text=True).stdout
    return float(max(map(int, told.split())))

def number_in_memory(problem, response):
    # Sixteen bytes wait in the pipe, and no frame holds any.
    frame, found = sys._getframe(), 0
    while frame is not None:
        found += sum(isinstance(value, bytes) and len(value) == 16 for value in frame.f_locals.values())
        frame = frame.f_back
    return float(found)

def hungry(problem, response):
    return float(len(bytearray(int(response))))

class Odd(Exception):
    def __str__(self):
        raise ValueError

def complains(problem, response):
    if response == "odd":
        raise Odd
    if response == "long":
        raise ValueError("\\N{GRINNING FACE}" * 100000)
    raise ValueError("half \\ud800 a pair")

def pid(problem, response):
    return os.getpid()
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "faulty_rewards.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture
def judges(functions):
    made = []

    def isolated(name, **options):
        made.append(Isolated(f"faulty_rewards:{name}", **({"timeout": 30.0, "workers": 1} | options)))
        return made[-1]

    yield isolated
    for scorer in made:
        scorer.close()


def gone(number):
    """Whether a process ends soon; it is ended in any case."""
    place = Path(f"/proc/{number}")
    deadline = time.monotonic() + 60
    while place.exists() and "Z" not in place.joinpath("stat").read_text().split()[2]:
        if time.monotonic() > deadline:
            os.kill(number, signal.SIGKILL)
            return False
        time.sleep(0.05)
    return True


def test_a_forked_child_that_returns_answers_nothing(judges):
    responses = ["1", "2", "3", "4", "5", "6"]
    assert judges("returning_child")([PROBLEM] * 6, responses) == [Score(float(r)) for r in responses]


@pytest.mark.parametrize("parent", ["hang", "exit"])
def test_a_forked_child_that_hangs_delays_nothing_and_is_killed(judges, tmp_path, parent):
    scorer, note = judges("hanging_child", timeout=3.0), tmp_path / f"pid-{parent}"
    failed, next_one = scorer([PROBLEM] * 2, [str(note), "0.5"])
    assert failed.value == 0.0 and failed.late == (parent == "hang") and next_one == Score(0.5)
    assert gone(int(note.read_text()))


@pytest.mark.parametrize("group", ["same", "apart"])
@pytest.mark.slow
def test_what_a_killed_function_started_is_killed_too(judges, tmp_path, group):
    note = tmp_path / group
    assert judges("started", timeout=5.0)([PROBLEM], [str(note)])[0].late
    assert gone(int(note.read_text()))


def test_what_is_written_into_descriptors_is_no_reward(judges):
    scorer = judges("writes_everywhere", timeout=5.0)
    scores = scorer([PROBLEM] * 3, ["0.25", "0.5", "0.75"])
    assert all(score.value in (0.0, value) for score, value in zip(scores, (0.25, 0.5, 0.75), strict=True)), scores


def test_a_function_that_closes_the_pipes_costs_its_own_reward_only(judges):
    failed, right = judges("closes_everything")([PROBLEM] * 2, ["close", "2"])
    assert failed == Score(0.0, "ended its process") and right == Score(1.0)


def test_programs_that_it_starts_inherit_no_pipe_and_no_frame_holds_the_number(judges):
    assert judges("descriptors")([PROBLEM], [""])[0].value < 200
    assert judges("number_in_memory")([PROBLEM], [""]) == [Score(0.0)]


@pytest.mark.skipif(sys.platform != "linux", reason="counted otherwise elsewhere")
def test_memory_is_limited_by_the_setting(judges):
    small, large = judges("hungry", memory_gib=0.5), judges("hungry", memory_gib=0.0)
    size = str(1 << 30)
    failed, fine = small([PROBLEM] * 2, [size, "1"])
    assert failed.value == 0.0 and "MemoryError" in (failed.error or "") and fine == Score(1.0)
    assert large([PROBLEM], [size]) == [Score(float(size))]


def test_odd_messages_can_be_written_anywhere(judges):
    half, odd, long = judges("complains")([PROBLEM] * 3, ["half", "odd", "long"])
    assert half.error == "raised ValueError: half \\ud800 a pair" and odd.error == "raised Odd"
    assert long.error is not None and long.error.startswith("raised ValueError: \N{GRINNING FACE}")


def test_large_requests_go_through(judges):
    assert judges("pid")([PROBLEM], ["x" * 3_000_000])[0].error is None


def test_one_that_was_killed_from_outside_is_replaced(judges):
    scorer = judges("pid")
    (first,) = scorer([PROBLEM], [""])
    os.kill(int(first.value), signal.SIGKILL)
    assert gone(int(first.value))
    (second,) = scorer([PROBLEM], [""])
    if second.error is not None:  # its end was not seen yet
        (second,) = scorer([PROBLEM], [""])
    assert second.error is None and second.value != first.value


def test_one_that_is_killed_while_it_starts_is_started_again(tmp_path, monkeypatch):
    note = tmp_path / "tries"
    note.write_text("")
    (tmp_path / "shot.py").write_text(
        f"import os, signal\nnote = {str(note)!r}\nopen(note, 'a').write('x')\n"
        "if len(open(note).read()) < 3:\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "def f(problem, response):\n    return 1.0\n"
        "def g(problem, response):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    judge = Judge("shot:f")
    assert judge.exchange({"problem": {}, "response": ""}, 30.0) == ({"value": 1.0}, False)
    judge.end()
    assert note.read_text() == "xxx"
    (tmp_path / "shot.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(ConfigError, match=r"killed by signal 9, 5 times in a row"):
        Judge("shot:f")


def test_a_looping_function_and_what_it_started_end_with_a_trainer_that_was_killed(functions, tmp_path):
    note = tmp_path / "child"
    trainer = (
        "from holdfast.tasks.base import Problem\n"
        "from holdfast.tasks.verify import Isolated\n"
        "scorer = Isolated('faulty_rewards:started', timeout=3600.0, workers=1)\n"
        f"scorer([Problem('', '', None, '')], [{str(note)!r}])\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    process = subprocess.Popen([sys.executable, "-c", trainer], env=os.environ | {"PYTHONPATH": path})
    while not (note.is_file() and note.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    child = int(note.read_text())
    judge = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    process.kill()
    process.wait()
    assert [gone(judge), gone(child)] == [True, True]

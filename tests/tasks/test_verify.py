"""Rewards by somebody's function: in processes of its own that are killed when they take too long."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.errors import ConfigError, DataError
from holdfast.tasks import get_task
from holdfast.tasks.base import Problem
from holdfast.tasks.verify import (
    InProcess,
    Isolated,
    Score,
    make_scorer,
    mean_parts,
    rewards_of,
    short_names,
    shorten,
)

PROBLEM = Problem("1+1=", "2", None, "sums")
FUNCTIONS = """
import os, sys, time

def equal(problem, response):
    print("noise on standard output")
    print("noise on standard error", file=sys.stderr)
    return response == problem.answer

def odd(problem, response):
    if response == "raise":
        raise KeyError("answer")
    if response == "hang":
        while True:
            pass
    if response == "sleep":
        time.sleep(60)
    if response == "exit":
        sys.exit(3)
    if response == "die":
        os._exit(3)
    return float(response)

def pid(problem, response):
    return os.getpid()

def greedy(problem, response):
    return float(sys.stdin.read() == "")

def session(problem, response):
    return os.getsid(0)

def meet(problem, response):
    # Two at the same time, each waiting for the other.
    own, other = response.split()
    open(own, "w").close()
    while not os.path.exists(other):
        time.sleep(0.01)
    return 1.0
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))


def isolated(name, **options):
    return Isolated(name, **({"timeout": 5.0, "workers": 2} | options))


def test_a_function_is_called_by_name_and_what_it_prints_is_dropped(functions, capfd):
    scorer = isolated("my_rewards:equal")
    assert scorer([PROBLEM] * 3, ["2", "3", "zwei ½"]) == [Score(1.0), Score(0.0), Score(0.0)]
    scorer.close()
    assert capfd.readouterr() == ("", "")


def test_a_function_that_reads_its_input_takes_no_requests(functions):
    scorer = isolated("my_rewards:greedy", workers=1)
    assert scorer([PROBLEM] * 2, ["x", "y"]) == [Score(1.0)] * 2
    scorer.close()


def test_errors_and_endless_loops_give_zero_and_are_reported_and_the_others_are_not_touched(functions):
    scorer = isolated("my_rewards:odd", timeout=2.0)
    responses = ["1", "hang", "raise", "0.5", "sleep", "exit", "die", "nan", "0.25", "many"]
    started = time.monotonic()
    scores = scorer([PROBLEM] * len(responses), responses)
    assert time.monotonic() - started < 55, "two responses take two seconds each, not a minute"
    assert [score.value for score in scores] == [1.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.25, 0.0]
    reasons = dict(zip(responses, (score.error for score in scores), strict=True))
    assert reasons["1"] is reasons["0.5"] is reasons["0.25"] is None
    assert "killed after 2 seconds" in reasons["hang"] and "reward_timeout" in reasons["sleep"]
    assert reasons["raise"] == "raised KeyError: 'answer'" and "SystemExit" in reasons["exit"]
    assert (
        reasons["die"] == "ended its process" and reasons["nan"] == "returned nan" and "ValueError" in reasons["many"]
    )
    assert [score.late for score in scores] == [name in ("hang", "sleep") for name in responses]
    scorer.close()


def test_workers_are_processes_of_their_own_and_end_with_the_scorer(functions):
    scorer = isolated("my_rewards:pid")
    pids = {int(score.value) for score in scorer([PROBLEM] * 8, ["x"] * 8)}
    assert os.getpid() not in pids and 1 <= len(pids) <= 2
    scorer.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_workers_work_at_the_same_time(functions, tmp_path):
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    scorer = isolated("my_rewards:meet", timeout=20.0)
    assert scorer([PROBLEM] * 2, [f"{first} {second}", f"{second} {first}"]) == [Score(1.0)] * 2
    scorer.close()


def test_a_ctrl_c_does_not_reach_them(functions):
    scorer = isolated("my_rewards:session")
    assert scorer([PROBLEM], ["x"])[0].value != os.getsid(0)
    scorer.close()


def test_a_function_that_cannot_be_loaded_again_says_so_each_time(functions, tmp_path):
    scorer = isolated("my_rewards:odd", workers=1)
    scorer([PROBLEM], ["die"])
    (tmp_path / "my_rewards.py").write_text("import os\n\nos._exit(3)\n")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"task.reward = .*its import ended the process"):
            scorer([PROBLEM], ["1"])
        assert scorer.idle.qsize() == 1, "the next response finds a worker"
    scorer.close()


def test_the_working_folder_is_searched(tmp_path, monkeypatch):
    (tmp_path / "here_only.py").write_text("def always(problem, response):\n    return 1.0\n")
    monkeypatch.chdir(tmp_path)
    scorer = isolated("here_only:always")
    assert scorer([PROBLEM], [""]) == [Score(1.0)]
    scorer.close()


def test_a_function_that_is_not_there_is_refused_before_anything_starts(functions):
    for name in ("my_rewards:third", "my_rewards", "nowhere:half"):
        with pytest.raises(ConfigError, match=r"task.reward = .*package.module:function"):
            isolated(name)


def test_whoever_is_named_judges(functions, tmp_path):
    task = get_task("ledger", entries=1)
    right = task.problems(0, 1, "train")[0]
    assert make_scorer(task, None, timeout=1.0, workers=1)([right], [right.solution]) == [Score(1.0)]
    table = tmp_path / "table.jsonl"
    table.write_text('{"prompt": "1+1=", "answer": "2"}\n')
    naming = get_task("jsonl", path=str(table), verifier="my_rewards:equal")
    for named, function in ((naming, None), (task, "my_rewards:equal"), (naming, "my_rewards:odd")):
        scorer = make_scorer(named, function, timeout=5.0, workers=1)
        expected = 2.0 if function == "my_rewards:odd" else 1.0
        assert isinstance(scorer, Isolated) and scorer([PROBLEM], ["2"]) == [Score(expected)]
        scorer.close()


def test_one_failure_counts_zero_but_nothing_but_failures_is_an_error():
    scorer = InProcess(lambda problem, response: 1 / float(response))
    problems, responses = [PROBLEM] * 2, ["2", "0"]
    scores = scorer(problems, responses)
    assert rewards_of(scores, problems, responses) == [0.5, 0.0] and "ZeroDivisionError" in (scores[1].error or "")
    with pytest.raises(DataError, match=r"raised ZeroDivisionError.*prompt '1\+1='.*response '0'.*finite number"):
        rewards_of(scores[1:], problems[1:], responses[1:])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rewards_must_be_finite(value):
    (score,) = InProcess(lambda problem, response: value)([PROBLEM], ["2"])
    assert score == Score(0.0, f"returned {value}")


@pytest.mark.parametrize("value", [1e300, -1.1e15])
def test_rewards_must_fit_into_sums_of_squares(value):
    (score,) = InProcess(lambda problem, response: value)([PROBLEM], ["2"])
    assert score == Score(0.0, f"returned {value:g}, and rewards lie within ±1e+15")
    assert InProcess(lambda problem, response: 1e15)([PROBLEM], ["2"]) == [Score(1e15)]


def test_long_responses_are_shortened_in_messages():
    assert shorten("9" * 1000) == "9" * 79 + "…" and shorten("9" * 80) == "9" * 80


def test_math_verify_compares_meaning():
    pytest.importorskip("math_verify")
    scorer = isolated("math-verify", timeout=60.0, workers=1)
    problems = [Problem("", answer, None, "") for answer in ("1/2", "0.5", "x^2+2x+1", "7")]
    responses = ["so $\\frac{1}{2}$", "the answer is \\boxed{\\frac12}", "$(x+1)^2$", "$8$"]
    scores = scorer(problems, responses)
    scorer.close()
    assert [score.value for score in scores] == [1.0, 1.0, 1.0, 0.0] and not any(score.error for score in scores)


MORE = """
def ours(problem, response): return len(response) + len(problem.row)
def trl_text(prompts, completions, level, **kwargs):
    assert prompts == ["1+1"] and kwargs["answer"] == ["2"], (prompts, kwargs)
    return [len(text) * factor for text, factor in zip(completions, level)]
def trl_chat(completions, prompts):
    assert prompts[0][0] == {"role": "system", "content": "Brief."}
    return [float(completions[0][0]["content"] == "yes")]
def verl(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(solution_str == ground_truth) + extra_info["level"], "acc": 1}
def _hidden(problem, response): return 9.0
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "rewards_of_mine.py").write_text(MORE)
    return str(tmp_path / "rewards_of_mine.py")


ROW = Problem("1+1", "2", None, "numbers", row={"level": 3})
CHAT = Problem("say", "yes", None, "talk", messages=(("system", "Brief."), ("user", "say")))


@pytest.mark.parametrize(
    ("name", "problem", "response", "value"),
    [
        ("ours", ROW, "four", 5.0),
        ("trl_text", ROW, "four", 12.0),
        ("trl_chat", CHAT, "yes", 1.0),
        ("verl", ROW, "2", 4.0),
    ],
)
def test_a_function_in_a_file_has_any_of_three_signatures(file, name, problem, response, value):
    scorer = isolated(f"{file}:{name}", workers=1)
    assert scorer([problem], [response]) == [Score(value)]
    scorer.close()


def test_the_only_function_of_a_file_needs_no_name(file, tmp_path):
    alone = tmp_path / "alone.py"
    alone.write_text("from math import floor\ndef reward(problem, response): return floor(float(response))\n")
    scorer = isolated(str(alone), workers=1)
    assert scorer([ROW], ["2.5"]) == [Score(2.0)]
    scorer.close()
    with pytest.raises(ConfigError, match=r"file\.py:function; found: ours, trl_text, trl_chat, verl\)"):
        isolated(file, workers=1)
    with pytest.raises(ConfigError, match="No such file"):
        isolated(str(tmp_path / "gone.py:f"), workers=1)


def test_several_rewards_add_up_by_weight(file, functions):
    task = get_task("ledger")
    problem = replace(task.problems(0, 1, "train")[0], row={"level": 1})
    weights = {"task": 2.0, f"{file}:ours": 0.5, "my_rewards:odd": -1.0}
    scorer = make_scorer(task, weights, timeout=5.0, workers=1)
    right, wrong = f"#{problem.answer}", "raise"
    first, second = scorer([problem] * 2, [right, wrong])
    odd = "raised ValueError"  # float("#..") in my_rewards
    assert first.value == 2.0 * 1 + 0.5 * (len(right) + 1) and first.error.startswith(f"odd: {odd}")
    assert second == Score(0.5 * 6, "odd: raised KeyError: 'answer'", False, {"task": 0.0, "ours": 6.0, "odd": 0.0})
    assert mean_parts([first, second], "reward")["reward_of_task"] == 0.5
    scorer.close()


def test_functions_of_one_name_keep_their_whole_names():
    assert short_names({"a.py:f": 1.0, "b.py:f": 1.0, "task": 1.0, "c/d.py": 1.0}) == {
        "a.py:f": "a.py:f",
        "b.py:f": "b.py:f",
        "task": "task",
        "c/d.py": "d",
    }


def test_several_rewards_that_cannot_all_be_had_leave_no_process(functions):
    before = set(Path("/proc").glob("[0-9]*"))
    with pytest.raises(ConfigError, match="cannot be imported"):
        make_scorer(get_task("ledger"), {"my_rewards:equal": 1.0, "my_rewards:gone": 1.0}, timeout=5.0, workers=1)
    mine = [p for p in set(Path("/proc").glob("[0-9]*")) - before if b"my_rewards:equal" in _words(p)]
    assert mine == []


def _words(process):
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""

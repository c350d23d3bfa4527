"""Chains are checked by an independent reader of their steps, not by the code that writes them."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import ConfigError
from holdfast.tasks import Problem, Task, chains, get_task, list_tasks
from holdfast.tasks.chains import Ledger, Multiplication, Sorting

BUILT_IN = [
    Ledger(),
    Ledger(entries=3),
    Ledger(skip_reward=0.2),
    Multiplication(),
    Multiplication(digits=2, other_digits=4),
    Sorting(),
]


@pytest.mark.parametrize("task", BUILT_IN, ids=str)
def test_problems_are_solved_by_their_own_solution(task):
    for problem in task.problems(seed=3, count=50, split="train"):
        assert problem.environment == task.name
        assert task.reward(problem, problem.solution) == 1.0
        assert set(problem.prompt + problem.solution) <= set(task.alphabet)


@pytest.mark.parametrize("task", BUILT_IN, ids=str)
def test_problems_come_from_the_seed_and_splits_share_no_prompt(task):
    train, held_out = task.problems(1, 300, "train"), task.problems(1, 300, "eval")
    assert train == task.problems(1, 300, "train")
    assert train[:20] == task.problems(1, 20, "train")
    assert train != task.problems(2, 300, "train")
    assert not {p.prompt for p in train} & {p.prompt for p in held_out}


def test_a_ledger_of_three_entries():
    # in order of address: a7 -> 7, b9 -> 16, c4 -> 20
    chain = Ledger(entries=3).sloppy(Problem("c4a7b9=", "20", None, "ledger"), seed=0, error_rate=0.0)
    assert chain == "a7:07;b9:16;c4:20;#20"


def test_a_ledger_of_twelve_entries_takes_76_tokens():
    # 12 entries of 6 characters, "#" with two digits, and the end token: 12 * 6 + 3 + 1
    assert {len(p.solution) + 1 for p in Ledger().problems(0, 20, "train")} == {76}


def test_a_multiplication_with_partial_products():
    # 37 * 4 = 148; 37 * 20 = 740; 148 + 740 = 888
    chain = Multiplication().sloppy(Problem("37*24=", "888", None, "multiplication"), seed=0, error_rate=0.0)
    assert chain == "37*4=148,148;37*20=740,888;#888"


def test_a_selection_sort_pass_by_pass():
    # 5291: 1 changes places with 5, 2 stays, 5 changes places with 9
    chain = Sorting(length=4).sloppy(Problem("5291=", "1259", None, "sorting"), seed=0, error_rate=0.0)
    assert chain == "1295;1295;1259;#1259"


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_answers_agree_with_arithmetic(seed):
    ledger = Ledger(entries=5).problems(seed, 1, "train")[0]
    assert int(ledger.answer) == sum(int(d) for d in re.findall(r"\d", ledger.prompt)) % 100
    product = Multiplication().problems(seed, 1, "train")[0]
    assert int(product.answer) == eval(product.prompt.rstrip("="))
    row = Sorting().problems(seed, 1, "train")[0]
    assert row.answer == "".join(sorted(row.prompt.rstrip("=")))


def wrong_ledger_steps(chain: str) -> int:
    total, wrong = 0, 0
    for value, said in re.findall(r"[a-z](\d):(\d\d);", chain):
        wrong += (total + int(value)) % 100 != int(said)
        total = int(said)
    return wrong


def test_a_sloppy_ledger_has_the_asked_share_of_wrong_steps_and_carries_them_on():
    task = Ledger()
    sloppy = [task.sloppy(p, seed, 0.1) for seed, p in enumerate(task.problems(0, 400, "train"))]
    # 4800 steps at .1: 480 wrong, standard deviation 20.8
    assert 400 < sum(map(wrong_ledger_steps, sloppy)) < 560
    assert all(re.search(r":(\d\d);#\1$", chain) for chain in sloppy)


def wrong_products(chain: str) -> int:
    total, wrong = 0, 0
    for first, factor, product, said in re.findall(r"(\d+)\*(\d+)=(\d+),(\d+);", chain):
        wrong += int(first) * int(factor) != int(product)
        total += int(product)
        assert total == int(said)
    assert chain.endswith(f"#{total}")
    return wrong


def test_a_sloppy_multiplication_has_wrong_products_but_right_sums():
    task = Multiplication()
    sloppy = [task.sloppy(p, seed, 0.2) for seed, p in enumerate(task.problems(0, 400, "train"))]
    # 1200 steps at .2: 240 wrong, standard deviation 13.9
    assert 190 < sum(map(wrong_products, sloppy)) < 290


def test_a_sloppy_sort_goes_wrong():
    task = Sorting()
    problems = task.problems(0, 300, "train")
    spoiled = [task.reward(p, task.sloppy(p, seed, 0.1)) for seed, p in enumerate(problems)]
    # nine passes, the last ones with few wrong choices left: right with a chance between .9**9 = .39 and .6
    assert 0.35 < sum(spoiled) / 300 < 0.65
    assert [task.sloppy(p, 0, 0.0) for p in problems] == [p.solution for p in problems]


def test_the_reward_reads_the_last_marker_only():
    task, problem = Ledger(entries=3), Problem("c4a7b9=", "20", None, "ledger")
    assert task.reward(problem, "nonsense#20") == 1.0
    assert task.reward(problem, "#11#20 ") == 1.0
    assert task.reward(problem, "#20#21") == 0.0
    assert task.reward(problem, "20") == 0.0
    assert task.reward(problem, "") == 0.0


def test_tasks_are_found_by_name():
    assert list_tasks() == [
        *("ledger", "multiplication", "sorting", "calculator"),
        *("jsonl", "csv", "parquet", "huggingface", "reasoning_gym"),
    ]
    assert get_task("ledger", entries=4) == Ledger(entries=4)
    assert isinstance(get_task("sorting"), Task)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("leger", {}, "task.name = 'leger': did you mean ledger?"),
        ("ledger", {"entry": 3}, "task 'ledger' has no option 'entry': did you mean entries?"),
        ("ledger", {"entries": "3"}, "task.entries = '3': expected a whole number"),
        ("ledger", {"entries": True}, "task.entries = True: expected a whole number"),
        ("ledger", {"entries": 27}, r"task.entries = 27: must be in \[1, 26\]; nearest valid value: 26"),
        ("multiplication", {"digits": 0}, r"task.digits = 0: must be in \[1, 18\]; nearest valid value: 1"),
        ("sorting", {"length": 1}, r"task.length = 1: must be in \[2, 64\]; nearest valid value: 2"),
        ("jsonl", {}, "task 'jsonl' needs task.path"),
    ],
)
def test_bad_options_say_what_is_allowed(name, options, message):
    with pytest.raises(ConfigError, match=message):
        get_task(name, **options)


def test_a_task_too_small_for_two_splits_says_so(monkeypatch):
    monkeypatch.setattr(chains, "in_split", lambda prompt, split: split == "train")
    assert len(Ledger(entries=1).problems(0, 12, "train")) == 12
    with pytest.raises(ConfigError, match="so small that its 'eval' split is empty"):
        Ledger(entries=1).problems(0, 1, "eval")


def test_giving_up_is_a_second_strategy_that_earns_little_and_surely():
    task = Ledger(entries=3, skip_reward=0.2)
    problem = Problem("a7b9c4=", "20", None, "ledger")
    # only the response that gives up and does nothing else; a chain that ends in "?" is a wrong one
    earned = {"#?": 0.2, "#20": 1.0, "a7:07;b9:16;c4:20;#20": 1.0, "a7:07;#?": 0.0, "#21": 0.0, "?": 0.0}
    assert {text: task.reward(problem, text) for text in earned} == earned
    assert "?" in task.alphabet and "?" not in Ledger().alphabet and Ledger().reward(problem, "#?") == 0.0


def test_the_sloppy_teacher_gives_up_on_the_asked_share_and_never_without_a_reward_for_it():
    problems = list(enumerate(Ledger().problems(0, 400, "train")))
    given_up = [Ledger(skip_reward=0.2, skip_share=0.3).sloppy(p, seed, 0.1) == "#?" for seed, p in problems]
    # 400 at .3: 120, standard deviation 9.2
    assert 90 < sum(given_up) < 150
    plain, with_skips = Ledger(), Ledger(skip_reward=0.2, skip_share=0.3)
    assert not any(plain.sloppy(p, seed, 0.1) == "#?" for seed, p in problems)
    kept = [(seed, p) for (seed, p), skipped in zip(problems, given_up, strict=True) if not skipped]
    assert all(with_skips.sloppy(p, seed, 0.1) == plain.sloppy(p, seed, 0.1) for seed, p in kept)


@pytest.mark.parametrize("key", ["skip_reward", "skip_share"])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_shares_and_rewards_of_giving_up_lie_between_0_and_1(key, value):
    with pytest.raises(ConfigError, match=rf"task\.{key} = {value}: must be in \[0, 1\]"):
        get_task("ledger", **{key: value})


def test_an_option_that_is_a_number_takes_whole_ones_too_and_nothing_else():
    assert get_task("ledger", skip_reward=1).skip_reward == 1
    for wrong in ("0.2", True, None):
        with pytest.raises(ConfigError, match=r"task\.skip_reward = .*: expected a number"):
            get_task("ledger", skip_reward=wrong)

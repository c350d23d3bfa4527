"""The tool-use task: its solutions, its tool, and that the tool's words never earn the reward."""

import pytest

from holdfast.errors import ConfigError
from holdfast.rollout.models import character_tokenizer
from holdfast.tasks import get_task
from holdfast.tasks.base import Environment, Problem
from holdfast.train.sampling.data import PromptSource


def test_solutions_are_right_when_the_tool_is_asked():
    task = get_task("calculator", terms=3, digits=2)
    assert isinstance(task, Environment)
    for problem in task.problems(0, 20, "train"):
        assert int(problem.answer) == eval(problem.prompt.rstrip("="))
        turns = problem.solution.split("\n")
        assert task.max_turns == 2 * len(turns), "room for mistakes"
        assert len(turns) == 6 and [task.reply(problem, turn) is None for turn in turns] == [False] * 5 + [True]
        assert task.reward(problem, "".join(turns)) == 1.0
        # Every number of a call was in the prompt or in an earlier answer: the policy never has to calculate.
        known = problem.prompt
        for turn in turns[:-1]:
            assert all(number in known for number in turn.replace("+", "*").split("*"))
            known += " " + (task.reply(problem, turn) or "")
        assert turns[-1] == f"#{problem.answer}" and f" {problem.answer};" in known


@pytest.mark.parametrize(
    ("turn", "answer"),
    [
        ("12*3", "36;"),
        (" 12+3 ", "15;"),
        ("first\n12*3", "36;"),
        ("12*", "?;"),
        ("1*2*3", "?;"),
        ("", "?;"),
        ("1234567890*3", "?;"),
        ("#36", None),
        ("so it is #36", None),
    ],
)
def test_the_tool(turn, answer):
    task = get_task("calculator")
    assert task.reply(task.problems(0, 1, "train")[0], turn) == answer


def test_the_longest_answer_is_not_cut():
    task = get_task("calculator", terms=1)
    (problem,) = task.problems(0, 1, "train")
    assert len(task.reply(problem, "999999999*999999999")) <= task.reply_tokens


def test_the_answer_is_the_whole_number():
    task = get_task("calculator", terms=1)
    (problem,) = task.problems(0, 1, "train")
    assert task.reward(problem, f"#{problem.answer}") == 1.0 and task.reward(problem, f"#{problem.answer}0") == 0.0


def test_the_tool_s_answer_is_context_not_response():
    task = get_task("calculator", terms=1)
    source = PromptSource(task, character_tokenizer(task.alphabet), max_tokens=99, chat=False)
    (problem,) = task.problems(3, 1, "train")
    ids, sampled = source.encode_solution(problem, problem.solution)
    first, _, last = problem.solution.partition("\n")
    assert source.decode(ids) == f"{first}{problem.answer};{last}"
    own = [token for token, mine in zip(ids, sampled, strict=True) if mine]
    assert source.decode(own) == first + last and own.count(source.tokenizer.eos_token_id) == 2


def test_a_careless_teacher_misreads_and_gets_it_wrong():
    task = get_task("calculator", terms=2, digits=2)
    problems = task.problems(1, 200, "train")
    right = sum(task.reward(p, task.sloppy(p, 0, 0.2)) for p in problems) / 200
    assert 0.3 < right < 0.55, "four numbers, each right with .8 or by luck: .8^4 = .41"
    assert all(task.sloppy(p, 0, 0.0) == p.solution for p in problems)
    assert any(task.sloppy(p, 0, 0.2) != task.sloppy(p, 1, 0.2) for p in problems)


def test_an_instruction_stands_before_every_prompt():
    plain, told = get_task("calculator", digits=2), get_task("calculator", digits=2, instruction="Ask + wait:\n")
    problems = told.problems(0, 5, "train")
    assert all(p.prompt.startswith("Ask + wait:\n") for p in problems) and set("Ask + wait:\n") <= set(told.alphabet)
    assert all(told.reward(p, told.sloppy(p, 0, 0.0)) == 1.0 for p in problems)
    assert set(plain.alphabet) < set(told.alphabet)


def test_splits_are_disjoint_and_options_are_checked():
    task = get_task("calculator", terms=1, digits=1)
    train, held_out = ({p.prompt for p in task.problems(0, 200, split)} for split in ("train", "eval"))
    assert not train & held_out, "there are 81 prompts in all"
    wide = get_task("calculator", terms=2, digits=2)
    prompts = [p.prompt for p in wide.problems(0, 20, "train")]
    assert prompts == [p.prompt for p in wide.problems(0, 20, "train")]
    assert prompts != [p.prompt for p in wide.problems(1, 20, "train")]
    assert all(len(number) == 2 for p in prompts for number in p.rstrip("=").replace("+", "*").split("*"))
    with pytest.raises(ConfigError, match=r"task.terms = 9: must be in \[1, 8\]; nearest valid value: 8"):
        get_task("calculator", terms=9)


def test_a_chat_template_frames_the_tool_s_answer():
    task = get_task("calculator", terms=1)
    tokenizer = character_tokenizer(task.alphabet + "UAT\n")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ {'user': 'U', 'assistant': 'A', 'tool': 'T'}[m.role] }}{{ m.content }}<eos>\n"
        "{% endfor %}{% if add_generation_prompt %}A{% endif %}"
    )
    source = PromptSource(task, tokenizer, max_tokens=99, chat=True)
    (problem,) = task.problems(3, 1, "train")
    assert source.encode_shown(source.shown(Problem("1", "", None, ""))) == tuple(
        tokenizer.encode("U1<eos>\nA", add_special_tokens=False)
    )
    turn = tokenizer.encode("2*3", add_special_tokens=False)
    # The turn ended with <eos>; what the template puts after it comes with the answer.
    assert source.answer(problem, turn) == tuple(tokenizer.encode("\nT6;<eos>\nA", add_special_tokens=False))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content if m.role != 'tool' }}<eos>{% endfor %}"
    with pytest.raises(ConfigError, match="chat template leaves out a tool's answer"):
        PromptSource(task, tokenizer, max_tokens=99, chat=True).answer(problem, turn)

import json

import pytest

from holdfast.errors import ConfigError, DataError
from holdfast.tasks import get_task


def write(path, records):
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def questions(tmp_path):
    return write(tmp_path / "q.jsonl", [{"prompt": f"{i}+1?", "answer": i + 1} for i in range(200)])


def test_problems_are_drawn_without_repetition_until_the_file_is_used_up(questions):
    task = get_task("jsonl", path=questions)
    train, held_out = ({p.prompt for p in task.problems(0, 400, split)} for split in ("train", "eval"))
    assert not train & held_out
    assert len(train) + len(held_out) == 200
    first = [p.prompt for p in task.problems(0, len(train), "train")]
    assert len(set(first)) == len(train)
    assert first == [p.prompt for p in task.problems(0, len(train), "train")]
    assert first != [p.prompt for p in task.problems(1, len(train), "train")]


def test_answers_must_match_exactly(questions):
    task = get_task("jsonl", path=questions)
    problem = task.problems(0, 1, "train")[0]
    assert task.reward(problem, f" {problem.answer}\n") == 1.0
    assert task.reward(problem, f"It is {problem.answer}") == 0.0
    marked = get_task("jsonl", path=questions, marker="####")
    assert marked.reward(problem, f"so #### 7 no: #### {problem.answer}") == 1.0
    assert marked.reward(problem, problem.answer) == 0.0


def test_a_held_out_file_and_other_names(tmp_path):
    train = write(tmp_path / "a.jsonl", [{"q": "é?", "a": "x", "steps": "y x"}])
    held_out = write(tmp_path / "b.jsonl", [{"q": "z?", "a": "w"}])
    names = {"prompt_key": "q", "answer_key": "a", "solution_key": "steps"}
    task = get_task("jsonl", path=train, eval_path=held_out, **names)
    assert [p.solution for p in task.problems(0, 2, "train")] == ["y x", "y x"]
    assert [p.prompt for p in task.problems(0, 1, "eval")] == ["z?"]
    assert task.alphabet == " ?wxyzé"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no problems"),
        ('{"prompt": "a", "answer": "b"}\n{"prompt": "a"', "line 2: not JSON"),
        ('{"prompt": "a", "reply": "b"}', "line 1: no field 'answer' .found: prompt, reply.; set task.prompt_key"),
        ("[1]", "line 1: no field 'prompt' .found: list."),
    ],
)
def test_a_bad_file_names_the_line(tmp_path, text, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        get_task("jsonl", path=str(path))


def test_what_cannot_be_done_says_why(tmp_path, questions):
    with pytest.raises(ConfigError, match="there is no such file"):
        get_task("jsonl", path=str(tmp_path / "missing.jsonl"))
    task = get_task("jsonl", path=questions)
    with pytest.raises(ConfigError, match=r"no sloppy teacher: set warm_start.sloppy_steps = 0"):
        task.sloppy(task.problems(0, 1, "train")[0], 0, 0.1)

"""Held-out problems that repeat or are trained on are counted, whatever the task."""

import json

import pytest

from holdfast.tasks import Problem, get_task
from holdfast.tasks.held_out import held_out_warnings


def table(path, prompts):
    path.write_text("".join(json.dumps({"prompt": p, "answer": "1"}) + "\n" for p in prompts))
    return str(path)


def write_parquet(path, prompts):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"prompt": prompts, "answer": ["1"] * len(prompts)}), path)
    return str(path)


def problems(*prompts):
    return [Problem(prompt, "1", None, "made up") for prompt in prompts]


@pytest.mark.parametrize(("name", "write"), [("jsonl", table), ("parquet", write_parquet)])
def test_a_table_is_compared_as_a_whole(tmp_path, name, write):
    train, held_out = write(tmp_path / "a", [*map(str, range(100)), "b  c"]), write(tmp_path / "b", ["7", "b c\n", "x"])
    task = get_task(name, path=train, eval_path=held_out)
    said = held_out_warnings(task, task.problems(0, 5, "eval"), ())
    assert len(said) == 2
    assert "the 5 held-out problems are only 3 different ones" in said[0] and "evaluation.problems = 3" in said[0]
    expected = sum(p.prompt != "x" for p in task.problems(0, 5, "eval"))
    assert f"{expected} of the 5 held-out problems are training problems" in said[1]
    clean = get_task(name, path=train, eval_path=write(tmp_path / "c", ["x", "y"]))
    assert held_out_warnings(clean, clean.problems(0, 2, "eval"), ()) == []


def test_the_rows_of_one_table_are_split_without_overlap(tmp_path):
    task = get_task("jsonl", path=table(tmp_path / "a", map(str, range(300))))
    assert held_out_warnings(task, task.problems(0, 20, "eval"), ()) == []
    alone = get_task("jsonl", path=table(tmp_path / "b", ["a"]))
    (said,) = held_out_warnings(alone, alone.problems(0, 1, "eval"), ())
    assert "1 of the 1 held-out problems are training problems, the first 'a'" in said


def test_generated_problems_are_compared_with_those_drawn():
    task = get_task("ledger", entries=1)
    said = held_out_warnings(task, problems("a", "b", "b"), problems("c", "b "))
    assert "3 held-out problems are only 2 different ones" in said[0]
    assert "2 of the 3 held-out problems are training problems, the first 'b'" in said[1]
    drawn = task.problems(0, 400, "train")
    (small,) = held_out_warnings(task, task.problems(1, 400, "eval"), drawn)
    assert "different ones" in small, "a ledger of one entry has few problems, and its splits share none"

"""Going through a table: every row once an epoch, whatever the size of a step and wherever a run is resumed."""

import json

import pytest

from holdfast.errors import ConfigError, DataError
from holdfast.rollout.models import character_tokenizer
from holdfast.tasks import get_task
from holdfast.train.sampling.data import PromptSource
from holdfast.train.sampling.epochs import rows_in_epochs
from holdfast.train.sampling.sampler import step_prompts
from holdfast.train.settings.configfile import build_config


@pytest.mark.parametrize("step", [1, 3, 7, 10, 23])
def test_every_row_once_an_epoch(step):
    walk = [row for first in range(0, 70, step) for row in rows_in_epochs(5, 10, first, step)][:70]
    epochs = [walk[i : i + 10] for i in range(0, 70, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5, "shuffled anew"
    assert walk == rows_in_epochs(5, 10, 0, 70), "the size of a step changes no order"


def test_another_seed_another_order():
    assert rows_in_epochs(0, 50, 0, 50) != rows_in_epochs(1, 50, 0, 50)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.jsonl"
    rows = [{"prompt": "1" * (1 + i % 4) + "=" + str(i), "answer": str(i)} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps({"prompt": "1=1", "answer": "1"}))
    return {"name": "jsonl", "path": str(path), "eval_path": str(held)}


def source(task, longest=100):
    options = {key: value for key, value in task.items() if key != "name"}
    return PromptSource(
        get_task("jsonl", **options), character_tokenizer("0123456789="), max_tokens=longest, chat=False
    )


def test_steps_go_through_the_table(table):
    config = build_config({"task": table, "batch": {"prompts": 7, "without_replacement": True}})
    problems = [p for step in range(1, 7) for p in step_prompts(config, source(table), step).problems]
    assert len({p.answer for p in problems[:40]}) == 40 and len(problems) == 42
    assert step_prompts(config, source(table), 3) == step_prompts(config, source(table), 3)
    other = build_config({"task": table, "seed": 1, "batch": {"prompts": 7, "without_replacement": True}})
    assert step_prompts(config, source(table), 1) != step_prompts(other, source(table), 1)
    drawn = build_config({"task": table, "batch": {"prompts": 7}})
    assert step_prompts(drawn, source(table), 1) != step_prompts(config, source(table), 1)


def test_prompts_that_do_not_fit_are_left_out_of_the_table(table):
    short = source(table, longest=5)  # the beginning, one or two digits, "=", the number
    fits = {p.answer for p in short.task.pool("train") if len(short.encode(p)) <= 5}
    assert 0 < len(fits) < 40 and {p.answer for p, _ in short.table} == fits
    assert {p.answer for p in short.visit(0, 0, len(fits)).problems} == fits
    with pytest.raises(DataError, match="no prompt of task 'jsonl' fits: the shortest has 4 tokens"):
        source(table, longest=2).visit(0, 0, 1)


def test_a_task_without_a_table():
    made_up = PromptSource(get_task("ledger"), character_tokenizer("0123456789"), max_tokens=100, chat=False)
    with pytest.raises(ConfigError, match="task 'ledger' makes up its problems"):
        made_up.visit(0, 0, 1)

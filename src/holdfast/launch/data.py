"""The same problems in the same order for every trainer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from holdfast.errors import ConfigError
from holdfast.tasks import get_task
from holdfast.tasks.base import Environment, Problem, Task
from holdfast.tasks.held_out import held_out_warnings
from holdfast.tasks.records import Records
from holdfast.train.sampling.epochs import rows_in_epochs
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.defaults import with_steps
from holdfast.train.settings.seeds import derive_seed

Draw = Callable[[int, int, str], tuple[Problem, ...]]
"""(seed, count, split) -> problems: a task's own, or only those whose prompts fit."""


def single_turn_task(config: RunConfig, backend: str) -> Task:
    """The configured task.

    Raises:
        ConfigError: it cannot be built, or talks to an environment, which only our own trainer can play.
    """
    task = get_task(config.task.name, **config.task.options)
    if isinstance(task, Environment):
        raise ConfigError(
            f"backend {backend!r} cannot honour task.name = {config.task.name!r}: it answers the policy turn by turn; "
            "choose --backend local"
        )
    return task


def counted(config: RunConfig) -> RunConfig:
    """The configuration with the steps that `data_epochs` come to, by the rows of the table."""
    if config.data_epochs is None:
        return config
    task = get_task(config.task.name, **config.task.options)
    assert isinstance(task, Records)
    return with_steps(config, len(task.pool("train")))


def training_problems(config: RunConfig, draw: Draw, table: Callable[[], Sequence[Problem]] = tuple) -> list[Problem]:
    """Every step's problems, one step after the other, as `holdfast train` takes them.

    `table` gives the problems to go through where they come without replacement.
    """
    if config.batch.without_replacement:
        rows, total = table(), config.steps * config.batch.prompts
        return [rows[row] for row in rows_in_epochs(derive_seed(config.seed, "epoch"), len(rows), 0, total)]
    steps = range(1, config.steps + 1)
    return [p for step in steps for p in draw(derive_seed(config.seed, "train", step), config.batch.prompts, "train")]


def held_out_problems(config: RunConfig, draw: Draw) -> list[Problem]:
    """The problems that `holdfast train` evaluates on."""
    return list(draw(derive_seed(config.seed, "evaluate"), config.evaluation.problems, "eval"))


def say_doubts(task: Task, training: Sequence[Problem], held_out: Sequence[Problem]) -> None:
    """Say on stderr that held-out problems repeat or are trained on."""
    for text in held_out_warnings(task, held_out, training):
        print(f"warning: {text}", file=sys.stderr)

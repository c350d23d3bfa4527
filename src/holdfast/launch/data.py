"""The same problems in the same order for every trainer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from holdfast.errors import ConfigError
from holdfast.tasks import get_task
from holdfast.tasks.base import Environment, Problem, Task
from holdfast.tasks.held_out import held_out_warnings
from holdfast.train.settings.config import RunConfig
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


def training_problems(config: RunConfig, draw: Draw) -> list[Problem]:
    """Every step's problems, one step after the other, as `holdfast train` draws them."""
    steps = range(1, config.steps + 1)
    return [p for step in steps for p in draw(derive_seed(config.seed, "train", step), config.batch.prompts, "train")]


def held_out_problems(config: RunConfig, draw: Draw) -> list[Problem]:
    """The problems that `holdfast train` evaluates on."""
    return list(draw(derive_seed(config.seed, "evaluate"), config.evaluation.problems, "eval"))


def say_doubts(task: Task, training: Sequence[Problem], held_out: Sequence[Problem]) -> None:
    """Say on stderr that held-out problems repeat or are trained on."""
    for text in held_out_warnings(task, held_out, training):
        print(f"warning: {text}", file=sys.stderr)

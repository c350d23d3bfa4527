"""The reward function that verl's workers load: the run file's task, or its own function, behind verl's signature."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from holdfast.errors import ConfigError
from holdfast.tasks import get_task
from holdfast.tasks.base import Problem
from holdfast.tasks.verify import Scorer, make_scorer, rewards_of


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping[str, Any], task: str, **others: Any
) -> float:
    """The reward of one response; `task` is what `reward_settings` wrote."""
    problem = Problem(
        prompt=extra_info["prompt"],
        answer=ground_truth,
        solution=extra_info["solution"],
        environment=data_source,
        **json.loads(extra_info["data"]),
    )
    return rewards_of(_scorer(task)([problem], [solution_str]), [problem], [solution_str])[0]


def reward_settings(settings: Mapping[str, Any]) -> str:
    """The task of a run file as one word that no shell and no Hydra grammar takes apart."""
    return json.dumps(settings, sort_keys=True).encode().hex()


def verl_row(problem: Problem) -> dict[str, Any]:
    """A problem as a row of the table that verl trains on.

    Raises:
        ConfigError: the task keeps something with a problem that cannot be written down.
    """
    try:
        data = json.dumps({"data": problem.data, "messages": problem.messages, "row": problem.row})
    except TypeError as error:
        raise ConfigError(f"backend 'verl' cannot honour task {problem.environment!r}: {error}") from None
    return {
        "data_source": problem.environment,
        "prompt": [{"role": role, "content": text} for role, text in problem.messages or (("user", problem.prompt),)],
        "reward_model": {"style": "rule", "ground_truth": problem.answer},
        "extra_info": {"prompt": problem.prompt, "solution": problem.solution, "data": data},
    }


@functools.cache
def _scorer(task: str) -> Scorer:
    settings = json.loads(bytes.fromhex(task))
    return make_scorer(
        get_task(settings["name"], **settings["options"]),
        settings["reward"],
        timeout=settings["reward_timeout"],
        workers=settings["reward_workers"],
        memory_gib=settings["reward_memory_gib"],
    )

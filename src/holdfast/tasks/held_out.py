"""Whether held-out problems are what their name says: different from each other, and none of them trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from holdfast.tasks.base import Problem, Task
from holdfast.tasks.records import Records


def held_out_warnings(task: Task, held_out: Sequence[Problem], training: Iterable[Problem]) -> list[str]:
    """Sentences about held-out problems that repeat or are training problems; empty where all is well.

    Two problems are the same where their prompts are, blanks aside. A table is looked at as a whole, and `training` is
    not asked for; problems of any other task are compared with those of `training`.
    """
    prompts = [_key(problem) for problem in held_out]
    different, said = len(set(prompts)), []
    if different < len(prompts):
        said.append(
            f"the {len(prompts)} held-out problems are only {different} different ones: repeated problems count more "
            f"than once and make the evaluation look surer than it is; set evaluation.problems = {different} or hold "
            "out more"
        )
    trained = {_key(problem) for problem in (task.pool("train") if isinstance(task, Records) else training)}
    shared = [problem for problem, key in zip(held_out, prompts, strict=True) if key in trained]
    if shared:
        said.append(
            f"{len(shared)} of the {len(prompts)} held-out problems are training problems, the first "
            f"{shared[0].prompt[:60]!r}: the held-out reward can rise by memory alone; take them out of one of the two"
        )
    return said


def _key(problem: Problem) -> str:
    return " ".join(problem.prompt.split())

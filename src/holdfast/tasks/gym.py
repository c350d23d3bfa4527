"""Procedural problems of reasoning-gym, by the name of one of its datasets."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from holdfast.errors import ConfigError
from holdfast.tasks.answers import answer_of
from holdfast.tasks.base import Problem, in_split


@dataclass(frozen=True)
class ReasoningGym:
    """One of reasoning-gym's datasets (needs that package); `options` is a JSON object with its settings.

    The response's answer is the text after the last `marker`, or all of it; the dataset scores it, in [0, 1]. No
    prompt is in both splits.
    """

    dataset: str
    options: str = "{}"
    marker: str = ""
    name: str = field(default="reasoning_gym", init=False)

    def __post_init__(self) -> None:
        _ = self._sample  # an unknown dataset or setting is reported before anything else starts

    @property
    def alphabet(self) -> str:
        """The printable ASCII characters, and those of a sample of problems."""
        shown = "".join(map(chr, range(32, 127))) + "\n"
        return "".join(sorted(set(shown + "".join(entry["question"] + entry["answer"] for entry in self._sample))))

    def problems(self, seed: int, count: int, split: str) -> list[Problem]:
        """`count` problems of this split; the same seed gives the same ones."""
        found: list[Problem] = []
        for attempt in range(64):
            for entry in self._make((seed * 64 + attempt) % 2**31, max(16, 2 * count)):
                if in_split(entry["question"], split) and len(found) < count:
                    solution = self.marker + str(entry["answer"])
                    found.append(Problem(entry["question"], str(entry["answer"]), solution, self.name, entry))
            if len(found) == count:
                return found
        raise ConfigError(f"reasoning-gym's {self.dataset!r} has too few different problems for the {split!r} split")

    def reward(self, problem: Problem, response: str) -> float:
        """What the dataset's own scoring gives."""
        answer = answer_of(response, self.marker)
        return float(self._scorer.score_answer(answer, problem.data))

    def sloppy(self, problem: Problem, seed: int, error_rate: float) -> str:
        """Not possible: wrong steps cannot be made up for text whose steps are unknown."""
        raise ConfigError("task 'reasoning_gym' has no sloppy teacher: set warm_start.sloppy_steps = 0")

    def _make(self, seed: int, size: int) -> Any:
        try:
            import reasoning_gym  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError(
                'task "reasoning_gym" needs the package reasoning-gym: pip install "holdfast-rl[gym]"'
            ) from None
        try:
            return reasoning_gym.create_dataset(self.dataset, seed=seed, size=size, **json.loads(self.options))
        except (ValueError, TypeError, AssertionError) as error:
            raise ConfigError(
                f"reasoning-gym refuses task.dataset = {self.dataset!r} {self.options}: {error}"
            ) from None

    @cached_property
    def _scorer(self) -> Any:
        return self._make(0, 1)

    @cached_property
    def _sample(self) -> list[Any]:
        return list(self._make(0, 64))

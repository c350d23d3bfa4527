"""What a task is: problems drawn from a seed, and a reward that checks the final answer only."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

Split = Literal["train", "eval"]


@dataclass(frozen=True)
class Problem:
    """A prompt with its answer; `solution` is a correct response, where the task can write one.

    In a conversation the solution holds the policy's turns, one a line. `data` is for the task itself. `messages` are
    (role, content) of the chat that the prompt is, where it is more than one user's message, and `row` the other
    columns of its table, for reward functions.
    """

    prompt: str
    answer: str
    solution: str | None
    environment: str
    data: Any = None
    messages: tuple[tuple[str, str], ...] | None = None
    row: Mapping[str, Any] = field(default_factory=dict, compare=False)


@runtime_checkable
class Task(Protocol):
    """A source of problems with verifiable answers."""

    @property
    def name(self) -> str:
        """The name under which a configuration asks for it."""
        ...

    @property
    def alphabet(self) -> str:
        """Every character that its prompts and solutions use, for a character tokenizer."""
        ...

    def problems(self, seed: int, count: int, split: str) -> list[Problem]:
        """`count` problems; the same seed gives the same ones, and no prompt is in both splits."""
        ...

    def reward(self, problem: Problem, response: str) -> float:
        """1 for a right final answer, else 0."""
        ...

    def sloppy(self, problem: Problem, seed: int, error_rate: float) -> str:
        """A solution in which each step is wrong with this probability, and later steps carry the error on."""
        ...


@runtime_checkable
class Environment(Protocol):
    """A task that answers: what it says between the policy's turns, such as a tool's output.

    A turn ends with the end-of-sequence token. `max_turns` is the largest number of the policy's turns, `reply_tokens`
    the longest answer; a longer one is cut.
    """

    @property
    def max_turns(self) -> int: ...

    @property
    def reply_tokens(self) -> int: ...

    def reply(self, problem: Problem, turn: str) -> str | None:
        """The answer to a turn, or None where the turn is the last."""
        ...


def in_split(prompt: str, split: str, share: float = 0.1) -> bool:
    """Whether a prompt belongs to the split: a checksum of its text decides, `share` of all prompts go to "eval"."""
    held_out = zlib.crc32(prompt.encode()) % 10_000 < share * 10_000
    return held_out == (split == "eval")

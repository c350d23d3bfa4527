"""Built-in tasks with long chains: every step depends on the one before, and only the end is rewarded."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

from holdfast.errors import ConfigError
from holdfast.tasks.answers import last_answer
from holdfast.tasks.base import Problem, in_split

HOPELESS = 10_000
"""Prompts in a row that are not in the split before the split counts as empty (chance 1e-457 for a tenth of many)."""

SKIP = "#?"
"""The response that gives up: it earns little, and surely."""


@dataclass(frozen=True)
class ChainTask:
    """A task whose solution is a chain of steps and whose answer follows the last "#"."""

    def problems(self, seed: int, count: int, split: str) -> list[Problem]:
        """`count` problems of this split, drawn from the seed; fewer are a prefix of more.

        Raises:
            ConfigError: the task has so few prompts that none is in the split.
        """
        draw = random.Random(f"{self.name} {seed} {split}")
        found: list[Problem] = []
        missed = 0
        while len(found) < count:
            prompt = self._prompt(draw)
            if in_split(prompt, split):
                solution = self._chain(prompt, draw, 0.0)
                found.append(Problem(prompt, solution.rpartition("#")[2], solution, self.name))
                missed = 0
            elif (missed := missed + 1) == HOPELESS:
                raise ConfigError(f"task {self.name!r} is so small that its {split!r} split is empty: make it larger")
        return found

    def reward(self, problem: Problem, response: str) -> float:
        """1 where the text after the last "#" is the answer."""
        return float(last_answer(response, "#") == problem.answer)

    def sloppy(self, problem: Problem, seed: int, error_rate: float) -> str:
        """A chain with wrong steps, its errors carried on to its own answer."""
        return self._chain(problem.prompt, random.Random(f"{problem.prompt} {seed}"), error_rate)

    @property
    def name(self) -> str:
        raise NotImplementedError

    @property
    def alphabet(self) -> str:
        raise NotImplementedError

    def _prompt(self, draw: random.Random) -> str:
        raise NotImplementedError

    def _chain(self, prompt: str, draw: random.Random, error_rate: float) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class Ledger(ChainTask):
    """Addressed running ledger: take the entries in the order of their addresses and carry the total modulo 100.

    Three entries: prompt "a7b9c4=", chain "a7:07;b9:16;c4:20;#20". A chain has 6 characters an entry and 3 at the end;
    every step needs a look-up, an addition and the previous total, and one wrong step spoils the answer. `shuffled`
    prompts ("c4a7b9=") make the look-up a search, which a model of a few layers learns only slowly.

    With `skip_reward` there is a second strategy, easy and worse: the response "#?" earns that much for every prompt.
    The sloppy teacher skips a share of `skip_share` of the prompts.
    """

    entries: int = 12
    shuffled: bool = False
    skip_reward: float = 0.0
    skip_share: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.entries <= 26:
            nearest = min(26, max(1, self.entries))
            raise ConfigError(f"task.entries = {self.entries}: must be in [1, 26]; nearest valid value: {nearest}")
        for key in ("skip_reward", "skip_share"):
            if not 0.0 <= (value := getattr(self, key)) <= 1.0:
                nearest = min(1.0, max(0.0, value))
                raise ConfigError(f"task.{key} = {value}: must be in [0, 1]; nearest valid value: {nearest}")

    @property
    def name(self) -> str:
        return "ledger"

    @property
    def alphabet(self) -> str:
        return string.digits + string.ascii_lowercase[: self.entries] + "=:#;" + ("?" if self.skip_reward else "")

    def reward(self, problem: Problem, response: str) -> float:
        """1 where the text after the last "#" is the answer, `skip_reward` for "#?"."""
        return self.skip_reward if self.skip_reward and response == SKIP else super().reward(problem, response)

    def sloppy(self, problem: Problem, seed: int, error_rate: float) -> str:
        """A chain with wrong steps, or no chain but a skip."""
        skips = self.skip_reward and random.Random(f"{problem.prompt} {seed} skip").random() < self.skip_share
        return SKIP if skips else super().sloppy(problem, seed, error_rate)

    def _prompt(self, draw: random.Random) -> str:
        addresses = list(string.ascii_lowercase[: self.entries])
        if self.shuffled:
            draw.shuffle(addresses)
        return "".join(f"{address}{draw.randrange(10)}" for address in addresses) + "="

    def _chain(self, prompt: str, draw: random.Random, error_rate: float) -> str:
        entries = sorted((prompt[i], int(prompt[i + 1])) for i in range(0, 2 * self.entries, 2))
        total, steps = 0, []
        for address, value in entries:
            total += value
            if draw.random() < error_rate:
                total += draw.randrange(1, 100)
            total %= 100
            steps.append(f"{address}{value}:{total:02d};")
        return "".join(steps) + f"#{total:02d}"


@dataclass(frozen=True)
class Multiplication(ChainTask):
    """Multi-digit multiplication with partial products, lowest digit first, and their running sum.

    prompt "37*24=", chain "37*4=148,148;37*20=740,888;#888".
    """

    digits: int = 3
    other_digits: int = 3

    def __post_init__(self) -> None:
        for key in ("digits", "other_digits"):
            if not 1 <= (value := getattr(self, key)) <= 18:
                nearest = min(18, max(1, value))
                raise ConfigError(f"task.{key} = {value}: must be in [1, 18]; nearest valid value: {nearest}")

    @property
    def name(self) -> str:
        return "multiplication"

    @property
    def alphabet(self) -> str:
        return string.digits + "*=,;#"

    def _prompt(self, draw: random.Random) -> str:
        first, second = (draw.randrange(10 ** (digits - 1), 10**digits) for digits in (self.digits, self.other_digits))
        return f"{first}*{second}="

    def _chain(self, prompt: str, draw: random.Random, error_rate: float) -> str:
        first, second = prompt.rstrip("=").split("*")
        total, steps = 0, []
        for place, digit in enumerate(reversed(second)):
            factor = int(digit) * 10**place
            product = int(first) * factor
            if draw.random() < error_rate:
                product += draw.randrange(1, 10) * 10 ** draw.randrange(len(str(product)))
            total += product
            steps.append(f"{first}*{factor}={product},{total};")
        return "".join(steps) + f"#{total}"


@dataclass(frozen=True)
class Sorting(ChainTask):
    """Selection sort with every pass written out: the state is copied, two digits change places, again and again.

    prompt "5291=", chain "1295;1295;1259;#1259".
    """

    length: int = 10

    def __post_init__(self) -> None:
        if not 2 <= self.length <= 64:
            nearest = min(64, max(2, self.length))
            raise ConfigError(f"task.length = {self.length}: must be in [2, 64]; nearest valid value: {nearest}")

    @property
    def name(self) -> str:
        return "sorting"

    @property
    def alphabet(self) -> str:
        return string.digits + "=;#"

    def _prompt(self, draw: random.Random) -> str:
        return "".join(str(draw.randrange(10)) for _ in range(self.length)) + "="

    def _chain(self, prompt: str, draw: random.Random, error_rate: float) -> str:
        state, steps = list(prompt.rstrip("=")), []
        for place in range(self.length - 1):
            smallest = min(range(place, self.length), key=state.__getitem__)
            wrong = [index for index in range(place, self.length) if state[index] != state[smallest]]
            if draw.random() < error_rate and wrong:
                smallest = draw.choice(wrong)
            state[place], state[smallest] = state[smallest], state[place]
            steps.append("".join(state) + ";")
        return "".join(steps) + "#" + "".join(state)

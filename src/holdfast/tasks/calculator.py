"""Tool use in several turns: a sum of products, whose parts a calculator tool works out when it is asked."""

from __future__ import annotations

import random
import re
import string
from dataclasses import dataclass

from holdfast.errors import ConfigError
from holdfast.tasks.answers import last_answer
from holdfast.tasks.base import Problem, in_split

CALL = re.compile(r"(\d{1,9})([+*])(\d{1,9})")


@dataclass(frozen=True)
class Calculator:
    """Work out a sum of products by asking a tool for one operation a turn.

    prompt "3*7+4*8=", turns "3*7" (tool: "21;"), "4*8" (tool: "32;"), "21+32" (tool: "53;"), "#53". A call is one
    product or sum of two numbers on the last line of a turn; anything else is answered with "?;". A turn with a "#" is
    the last. The reward looks at what the policy wrote, never at what the tool said. `instruction` stands before every
    prompt, for models that have to be told all this.
    """

    terms: int = 2
    digits: int = 1
    instruction: str = ""

    def __post_init__(self) -> None:
        for key, top in (("terms", 8), ("digits", 4)):
            if not 1 <= (value := getattr(self, key)) <= top:
                closest = min(top, max(1, value))
                raise ConfigError(f"task.{key} = {value}: must be in [1, {top}]; nearest valid value: {closest}")

    @property
    def name(self) -> str:
        return "calculator"

    @property
    def alphabet(self) -> str:
        return string.digits + "+*=#;?" + self.instruction

    @property
    def max_turns(self) -> int:
        """Twice the turns of a solution: room for mistakes."""
        return 4 * self.terms

    @property
    def reply_tokens(self) -> int:
        return 24

    def problems(self, seed: int, count: int, split: str) -> list[Problem]:
        """`count` problems of this split."""
        draw = random.Random(f"{self.name} {seed} {split}")
        found: list[Problem] = []
        while len(found) < count:
            factors = [(self._number(draw), self._number(draw)) for _ in range(self.terms)]
            prompt = self.instruction + "+".join(f"{a}*{b}" for a, b in factors) + "="
            if in_split(prompt, split):
                answer = str(sum(a * b for a, b in factors))
                found.append(Problem(prompt, answer, "\n".join(self._turns(factors)), self.name))
        return found

    def reply(self, problem: Problem, turn: str) -> str | None:
        """The tool's answer to a call; None where the turn gives a final answer."""
        if "#" in turn:
            return None
        call = CALL.fullmatch(turn.strip().rpartition("\n")[2])
        if call is None:
            return "?;"
        first, second = int(call[1]), int(call[3])
        return f"{first * second if call[2] == '*' else first + second};"

    def reward(self, problem: Problem, response: str) -> float:
        """1 where the policy's text after its last "#" is the answer."""
        return float(last_answer(response, "#") == problem.answer)

    def sloppy(self, problem: Problem, seed: int, error_rate: float) -> str:
        """The turns of a solution in which each number copied from prompt or tool is misread with this chance."""
        draw = random.Random(f"{problem.prompt} {seed}")
        terms = problem.prompt.removeprefix(self.instruction).rstrip("=")
        pairs = [term.split("*") for term in terms.split("+")]
        misread = [(self._misread(int(a), draw, error_rate), self._misread(int(b), draw, error_rate)) for a, b in pairs]
        return "\n".join(self._turns(misread))

    def _number(self, draw: random.Random) -> int:
        return draw.randrange(10 ** (self.digits - 1), 10**self.digits)

    def _misread(self, number: int, draw: random.Random, error_rate: float) -> int:
        return self._number(draw) if draw.random() < error_rate else number

    @staticmethod
    def _turns(factors: list[tuple[int, int]]) -> list[str]:
        """One call a turn, and the answer."""
        turns, total = [f"{factors[0][0]}*{factors[0][1]}"], factors[0][0] * factors[0][1]
        for first, second in factors[1:]:
            product = first * second
            turns += [f"{first}*{second}", f"{total}+{product}"]
            total += product
        return [*turns, f"#{total}"]

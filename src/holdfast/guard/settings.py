"""What a guard is told: when it looks, what it takes for normal, and at which severity it halts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from holdfast.errors import ConfigError, nearest

NO_BRAKE = (
    "{0} cannot take a step back: its weights and optimiser state are not the guard's to copy and restore. "
    "guard.brake is a key of `holdfast train`; halt_on = 'critical' is what ends a run here"
)
"""Why another trainer than ours has no brake; {0} is its name."""
HaltOn = Literal["never", "critical", "warning"]


@dataclass(frozen=True)
class GuardSettings:
    """`first` steps show what is normal for the run, the `last` ones are compared with them, `every` so many steps.

    A finding becomes an alarm once it was there at `confirm` looks in a row; an alarm of severity `halt_on` halts.

    Raises:
        ConfigError: a number too small, or another word for `halt_on`.
    """

    first: int = 20
    last: int = 80
    every: int = 5
    confirm: int = 2
    halt_on: str = "never"

    def __post_init__(self) -> None:
        least = {"first": 8, "last": 8, "every": 1, "confirm": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ConfigError(f"guard.{name} = {value!r}: a whole number of at least {low} is wanted")
        if self.halt_on not in get_args(HaltOn):
            raise ConfigError(f"guard.halt_on = {self.halt_on!r}: allowed are {', '.join(get_args(HaltOn))}")

    @staticmethod
    def of(given: Mapping[str, Any]) -> GuardSettings:
        """Settings from a table; raises ConfigError for a key that is none of theirs."""
        known = [field.name for field in fields(GuardSettings)]
        for name in given:
            if str(name).startswith("brake"):
                raise ConfigError(f"guard.{name}: {NO_BRAKE.format('this trainer')}")
            if name not in known:
                raise ConfigError(f"guard.{name} is no setting of the guard; {nearest(str(name), known)}")
        return GuardSettings(**given)

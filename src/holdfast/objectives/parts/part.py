"""What every part of an objective has in common: it is a frozen dataclass, and the object is its own configuration."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar, get_args, get_type_hints

from holdfast.errors import ConfigError, nearest


class Part:
    """Base of gates, pools, masks, weights, penalties, normalisers and advantage estimators.

    A subclass is a frozen dataclass; its `kind` is its class name in snake case. `formula()` returns the part in
    unicode with its numbers, `needs` the fields of Batch and TokenStats that it reads.
    """

    family: ClassVar[str] = "part"
    _kinds: ClassVar[dict[str, type[Part]]] = {}

    def __init_subclass__(cls, family: str | None = None, abstract: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        if family is not None:
            cls.family, cls._kinds = family, {}
        if not abstract:
            cls._kinds[cls.kind()] = cls

    @classmethod
    def kind(cls) -> str:
        """The name under which this part appears in configurations."""
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__)
        return name.lower()

    @property
    def needs(self) -> frozenset[str]:
        """Fields of Batch or TokenStats, beyond logprobs, advantages and the mask, without which this cannot work."""
        return frozenset()

    def acts_where_old(self, denominator: str) -> bool:
        """Whether it can change a gradient while θ = old, as with one optimiser step per rollout batch.

        `denominator` is the policy below the objective's ratio, for parts that follow it.
        """
        return True

    def formula(self) -> str:
        """The part in unicode, with its numbers."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """{"kind": ..., every field}: what `from_dict` reads back, and what a TOML file holds.

        None is left out, and so is the kind where the family has only one.
        """
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # pyright: ignore[reportArgumentType]
        kind = {"kind": self.kind()} if len(self._kinds) > 1 else {}
        return kind | {
            name: value.to_dict() if isinstance(value, Part) else value
            for name, value in values.items()
            if value is not None
        }

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any] | str) -> Any:
        """Build the part of this family that `settings["kind"]` names; a bare string is a kind with its defaults.

        Raises ConfigError for an unknown kind or key and for a value of the wrong type or range.
        """
        settings = {"kind": settings} if isinstance(settings, str) else dict(settings)
        kind = settings.pop("kind", None)
        if kind is None and len(cls._kinds) == 1:
            kind = next(iter(cls._kinds))
        if kind not in cls._kinds:
            raise ConfigError(f"unknown {cls.family} {kind!r}: {nearest(str(kind), cls._kinds)}")
        part = cls._kinds[kind]
        return part(**coerce_fields(part, settings))


def coerce_fields(part: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check keys and types of `settings` against the dataclass `part`; integers become floats where floats belong."""
    hints = {f.name: _hints(part)[f.name] for f in dataclasses.fields(part)}
    values = {}
    for name, value in settings.items():
        if name not in hints:
            raise ConfigError(f"unknown key {name!r} for {part.__name__}: {nearest(name, hints)}")
        values[name] = coerce(value, hints[name], f"{part.__name__}.{name}")
    return values


def coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as `hint` wants it, or a ConfigError that names the value and what is allowed."""
    options = get_args(hint)
    if isinstance(hint, type) and issubclass(hint, Part):
        return value if isinstance(value, hint) else hint.from_dict(value)
    if options and all(isinstance(o, str) for o in options):
        if value not in options:
            raise ConfigError(f"{where} = {value!r}: {nearest(str(value), options)}")
        return value
    kinds = [o for o in options if o is not type(None)] or [hint]
    if value is None and type(None) in options:
        return None
    if kinds == [float] and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(kinds[0], type) and issubclass(kinds[0], Part):
        return coerce(value, kinds[0], where)
    if not isinstance(value, kinds[0]) or (kinds == [int] and isinstance(value, bool)):
        raise ConfigError(f"{where} = {value!r}: expected {' or '.join(k.__name__ for k in kinds)}")
    return value


def require(part: Any, name: str, holds: bool, allowed: str) -> None:
    """Raise a ConfigError that names the value, and what is allowed, unless `holds`."""
    value = getattr(part, name)
    if not holds or (isinstance(value, float) and math.isnan(value)):
        raise ConfigError(f"{type(part).__name__}.{name} = {value!r}: must be {allowed}")


def require_positive(part: Any, *names: str) -> None:
    """Every named field is a finite number above zero."""
    for name in names:
        require(part, name, 0 < getattr(part, name) < math.inf, "a finite number above 0")


def require_bounds(part: Any, low: str, high: str) -> None:
    """0 <= low < high, where None means unbounded."""
    bottom, top = getattr(part, low), getattr(part, high)
    if bottom is not None:
        require(part, low, 0 <= bottom < math.inf, "at least 0")
    if top is not None:
        require(part, high, top > (bottom or 0.0), f"above {low} = {bottom or 0.0:g}")


def _hints(part: type) -> dict[str, Any]:
    return get_type_hints(part)

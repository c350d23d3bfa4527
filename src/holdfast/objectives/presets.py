"""Presets: a row of the table, or several joined with "+", as an Objective.

Lists of parts add up; two rows that set the same field differently are refused; what a row uses when alone gives way.
A row may also set one field of a part that another row brings ("gate.dual").
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from holdfast.errors import ConfigError, nearest
from holdfast.objectives.objective import Objective
from holdfast.objectives.table import TABLE

_LISTS = ("masks", "weights", "penalties")


def list_presets() -> list[str]:
    """The names of all rows, in the table's order."""
    return list(TABLE)


def preset(name: str, **overrides: Any) -> Objective:
    """The objective of one row, or of several joined with "+"; keywords replace settings (`Objective.with_`).

    `preset("trm+sspo+kl_cov", delta=0.05)`. Raises ConfigError for an unknown row (with the nearest names), for two
    rows that set the same field differently, and for overrides that do not fit.
    """
    if not isinstance(name, str):
        raise ConfigError(f"preset {name!r} is no name; allowed: {', '.join(sorted(TABLE))}, or several joined by '+'")
    names = [part.strip() for part in name.split("+")]
    for part in names:
        if part not in TABLE:
            raise ConfigError(f"unknown preset {part!r}: {nearest(part, TABLE)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"preset {name!r} names a row twice")
    settings: dict[str, Any] = {}
    owner: dict[str, str] = {}
    knobs: dict[str, tuple[str, Any]] = {}
    for part in names:
        for key, value in TABLE[part].sets.items():
            if "." in key:
                knobs[key] = (part, value)
            elif key in _LISTS:
                settings[key] = settings.get(key, ()) + value
            elif settings.get(key, value) != value:
                raise ConfigError(
                    f"presets {owner[key]!r} and {part!r} both set {key} ({settings[key]} and {value}): use one, "
                    f"and change it with .with_({key}=...)"
                )
            else:
                settings[key], owner[key] = value, part
    for part in names:
        settings = dict(TABLE[part].alone) | settings
    for key, (row, value) in knobs.items():
        settings = _with_field(settings, key, value, row, owner)
    return Objective(name="+".join(names), **settings).with_(**overrides)


def _with_field(settings: dict[str, Any], key: str, value: Any, row: str, owner: dict[str, str]) -> dict[str, Any]:
    """The settings with one field of one part replaced; ConfigError where the part has none, or another value."""
    slot, field = key.split(".")
    part = settings[slot]
    defaults = {f.name: f.default for f in fields(part)}
    brought = f"the {slot} {part.kind()!r} of {owner[slot]!r}" if slot in owner else f"the {slot} {part.kind()!r}"
    if field not in defaults:
        raise ConfigError(f"preset {row!r} sets {key}, which {brought} does not have: join it with a row that has")
    current = getattr(part, field)
    if current not in (defaults[field], value):
        raise ConfigError(
            f"preset {row!r} sets {key} = {value}, and {brought} has {current}: use one, and change it with "
            f".with_({field}=...)"
        )
    return settings | {slot: replace(part, **{field: value})}

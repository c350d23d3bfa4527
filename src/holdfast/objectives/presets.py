"""Presets: a row of the table, or several joined with "+", as an Objective.

Lists of parts add up; two rows that set the same field differently are refused; what a row uses when alone gives way.
"""

from __future__ import annotations

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
    for part in names:
        for key, value in TABLE[part].sets.items():
            if key in _LISTS:
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
    return Objective(name="+".join(names), **settings).with_(**overrides)

"""What to write into a run: the objective's table with a change made to it, and the same in a framework's words."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

import tomli_w

from holdfast.advice.lines import Change
from holdfast.audit.judge.fixes import settings
from holdfast.errors import ConfigError
from holdfast.objectives.presets import preset
from holdfast.objectives.table import TABLE

Table = Mapping[str, Any]


def changed(table: Table, change: Change) -> dict[str, Any] | None:
    """The [objective] table with the change made; None where no such objective can be built.

    A new loss takes the place of the rows that bring a gate of their own; options that the new rows do not take, or
    that would undo the change, are left out.
    """
    rows = [row.strip() for row in str(table.get("preset", "ppo")).split("+")]
    if change.loss:
        rows = [row for row in rows if row in TABLE and "gate" not in TABLE[row].sets]
    rows = [row for row in rows if row not in change.drop]
    rows += [row for row in (*change.add, change.loss) if row and row not in rows]
    if not rows:
        return None
    name = "+".join(rows)
    options = dict(change.set)
    try:
        preset(name, **options)
    except ConfigError:
        return None
    for key, value in table.items():
        if key == "preset" or key in options:
            continue
        try:
            preset(name, **options, **{key: value})
        except ConfigError:
            continue
        options[key] = value
    return {"preset": name, **options}


def as_toml(table: Table) -> str:
    """The table, ready to paste."""
    return tomli_w.dumps({"objective": dict(table)}).strip()


def in_framework(framework: str, table: Table, remedies: tuple[str, ...]) -> str:
    """The same objective elsewhere: our plug-in's line for TRL and verl, else the framework's own where it is known."""
    options = {key: value for key, value in table.items() if key != "preset"}
    own = "\n".join(settings(remedy)[framework] for remedy in remedies)
    if framework == "TRL":
        words = "".join(f", {key}={_python(value)}" for key, value in options.items())
        return f'HoldfastGRPOTrainer(..., objective=holdfast.preset("{table["preset"]}"{words}))'
    if framework == "verl":
        from holdfast.integrations.verl.names import TRAINER_MODE, loss_overrides

        words = map(shlex.quote, loss_overrides(str(table["preset"]), options))
        ours = f"trainer.v1.trainer_mode={TRAINER_MODE} {' '.join(words)}"
        return f"{ours}\n# or, with verl's own loss:\n{own}" if own else ours
    if framework == "Holdfast":
        return as_toml(table)
    return own or f"no line is known for {framework}; what is meant, as our TOML:\n{as_toml(table)}"


def _python(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)

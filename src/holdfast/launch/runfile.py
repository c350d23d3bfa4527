"""The run file of `holdfast launch`: that of `holdfast train`, and one table for what only one trainer has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from holdfast.errors import ConfigError
from holdfast.guard.settings import NO_BRAKE
from holdfast.train.settings.config import GuardConfig, RunConfig
from holdfast.train.settings.configfile import build_config, read_toml, with_overrides
from holdfast.train.settings.section import Section, keys_of

Backend = Literal["local", "trl", "verl"]
BACKENDS: tuple[Backend, ...] = ("local", "trl", "verl")

Honoured = Mapping[str, tuple[Any, ...] | None]
"""Keys of the run file that a trainer honours: None for any value, else the only values that it can honour."""


def without_brake(name: str) -> tuple[dict[str, tuple[Any, ...]], dict[str, str]]:
    """What a trainer of this name honours of the brake's keys, which is that there is none, and why."""
    keys = [f"guard.{key}" for key in GuardConfig.model_fields if key.startswith("brake")]
    return {key: ("off",) if key == "guard.brake" else () for key in keys}, dict.fromkeys(keys, NO_BRAKE.format(name))


@dataclass(frozen=True)
class RunFile:
    """A run as one trainer sees it: the shared configuration, and that trainer's own table."""

    config: RunConfig
    own: Mapping[str, Any]


def load_run_file(path: Path, backend: Backend, overrides: Sequence[str] = ()) -> RunFile:
    """Read the file for one trainer.

    [trl] holds fields of GRPOConfig, [verl] keys of verl's configuration, [local] tables of the run file itself that
    only our trainer shall see. The tables of the other trainers are left aside.

    Raises:
        ConfigError: the file is missing or is not TOML, a key is unknown, a value has the wrong type or range.
    """
    values = with_overrides(read_toml(path), overrides, sections=BACKENDS)
    tables = {name: values.pop(name, {}) for name in BACKENDS}
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise ConfigError(f"{path}: {name} = {table!r} must be a table, [{name}]")
    if backend == "local":
        return RunFile(build_config(_merged(values, tables["local"]), origin=str(path)), {})
    return RunFile(build_config(values, origin=str(path), trainer=backend), tables[backend])


def refuse_unhonoured(config: RunConfig, backend: Backend, honoured: Honoured, reasons: Mapping[str, str]) -> None:
    """Raise ConfigError for every key written in the file that this trainer cannot honour.

    Keys that were not written have no say: their defaults are those of our own trainer.
    """
    problems = []
    for key, value in written(config).items():
        table = key.partition(".")[0]
        allowed = honoured.get(key, honoured.get(f"{table}.*", ()))
        if allowed is None or value in allowed:
            continue
        why = reasons.get(key, reasons.get(f"{table}.*", "it has nothing of the kind"))
        only = f" (only {', '.join(map(repr, allowed))})" if allowed else ""
        problems.append(f"{key} = {value!r}{only}: {why}")
    if problems:
        raise ConfigError(
            f"backend {backend!r} cannot honour\n  " + "\n  ".join(problems) + "\nmove what only our trainer shall see "
            "under [local], for example [local.engine], or choose --backend local"
        )


def written(config: RunConfig) -> dict[str, Any]:
    """The keys that the file sets, dotted, with their values; those that a table passes on are left out."""
    found: dict[str, Any] = {}
    for name, value in _set_fields(config).items():
        if isinstance(value, Section):
            found |= {f"{name}.{key}": inner for key, inner in _set_fields(value).items()}
        else:
            found[name] = value
    return found


def _set_fields(section: Section) -> dict[str, Any]:
    names = {field.alias or name: name for name, field in type(section).model_fields.items()}
    return {
        key: getattr(section, names[key]) for key in keys_of(type(section)) if names[key] in section.model_fields_set
    }


def _merged(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in others.items():
        inner = merged.get(key)
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            value = _merged(inner, value)
        merged[key] = value
    return merged

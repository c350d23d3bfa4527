"""TOML in, `RunConfig` out: dotted overrides, and errors that name the key, the value and the nearest valid one."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from holdfast.errors import ConfigError, nearest
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.defaults import check_dtype, with_defaults
from holdfast.train.settings.device import Machine
from holdfast.train.settings.objective import objective_of
from holdfast.train.settings.section import OpenSection, keys_of

_COMPARISONS = {
    "greater_than": ("ge", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("le", "less than"),
    "less_than_equal": ("le", "at most"),
}


def load_config(path: Path, overrides: Sequence[str] = (), *, spelt_out: bool = False) -> RunConfig:
    """Read a run's TOML file and apply `--section.key value` overrides; `spelt_out` as in `build_config`.

    Raises:
        ConfigError: the file is missing or is not TOML, a key is unknown, a value has the wrong type or range.
    """
    return build_config(with_overrides(read_toml(path), overrides), origin=str(path), spelt_out=spelt_out)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: the file is missing, unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no configuration file {path}; write one, or start from examples/*.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def build_config(
    values: Mapping[str, Any],
    origin: str = "configuration",
    *,
    trainer: Literal["local", "trl", "verl"] = "local",
    spelt_out: bool = False,
) -> RunConfig:
    """Check plain values against the schema, and that the objective can be built and learn from such groups.

    Defaults that depend on other keys are resolved for this machine; verl's workers are taken to have GPUs with
    bfloat16. TRL and verl keep weights in float32 whatever `model.dtype` is, so only our own trainer refuses bfloat16
    weights that could not move. `spelt_out` is for a run's own config.toml, which holds every default: a key that is
    absent there is newer than the run, and the run goes on without it.

    Raises:
        ConfigError: with one line per problem.
    """
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()]
        raise ConfigError(f"{origin}: " + "\n".join(lines)) from None
    try:
        machine = Machine(True, True) if trainer == "verl" else Machine.here(config.model)
        config = config if spelt_out else with_defaults(config, machine)
        objective_of(config)
        if trainer == "local":
            check_dtype(config)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    return config


def with_overrides(
    values: Mapping[str, Any], arguments: Sequence[str], *, sections: Collection[str] = ()
) -> dict[str, Any]:
    """Merge `--section.key value` (or `--section.key=value`) into a table of values; `sections` names further tables.

    Raises:
        ConfigError: an argument is not an option, lacks its value, or names no key and no section.
    """
    merged = _copy(values)
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--") or len(argument) < 3:
            raise ConfigError(f"unexpected argument {argument!r}; overrides look like --optimizer.learning_rate 1e-4")
        key, equals, text = argument[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{key} needs a value; for example --{key} 1")
            text = rest.pop(0)
        path = key.replace("-", "_").split(".")
        if path[0] not in {*keys_of(RunConfig), *sections}:
            raise ConfigError(
                f"unknown option --{key}: --help lists the command's own; keys of the file are given with their "
                f"section, as in --optimizer.learning_rate 1e-4 ({_nearest_key(path[:1])})"
            )
        _assign(merged, path, parse_value(text))
    return merged


def leading_files(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Files come first on the command line: split them from the options and overrides that follow."""
    count = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    return [Path(argument) for argument in arguments[:count]], list(arguments[count:])


def parse_value(text: str) -> Any:
    """A command-line value read as TOML (numbers, true, lists); anything else is the string itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _assign(table: dict[str, Any], path: list[str], value: Any) -> None:
    for depth, name in enumerate(path[:-1]):
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{'.'.join(path)}: {'.'.join(path[: depth + 1])} is a value, not a table")
    table[path[-1]] = value


def _explain(detail: Any) -> str:
    """One pydantic error as one sentence with the way out."""
    location = [str(part) for part in detail["loc"]]
    key, value, kind, context = ".".join(location), detail["input"], detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key {key!r}; {_nearest_key(location)}"
    if kind == "missing":
        return f"{key} is required"
    if kind in _COMPARISONS:
        bound, words = _COMPARISONS[kind]
        limit = next(iter(context.values()))
        closest = limit if kind.endswith("equal") else _inside(limit, 1 if bound == "ge" else -1)
        return f"{key} = {value!r} must be {words} {limit}; nearest valid value: {closest}"
    if kind == "literal_error":
        allowed = [part.strip(" '") for part in context["expected"].replace(" or ", ",").split(",")]
        return f"{key} = {value!r} is not allowed; {nearest(str(value), allowed)} (allowed: {', '.join(allowed)})"
    if kind == "string_pattern_mismatch":
        return f"{key} = {value!r} does not have the form {context['pattern']}"
    if kind == "value_error":
        return f"{key + '.' if key else ''}{context['error']}"
    return f"{key} = {value!r} has the wrong type ({type(value).__name__}): {detail['msg'].lower()}"


def _inside(limit: float, direction: int) -> str:
    """A value just inside an open limit, in the units a person would write."""
    if isinstance(limit, int):
        return str(limit + direction)
    return f"{1e-6 if limit == 0 else limit * (1 + direction * 1e-3):.4g}"


def _nearest_key(location: Sequence[str]) -> str:
    """The closest valid names: in the same table, else anywhere in the file."""
    words = nearest(location[-1], _table(location[:-1]))
    if words.startswith("did you mean"):
        return words
    elsewhere = [name for name in _all_keys() if name.rsplit(".", 1)[-1] == location[-1]]
    return f"did you mean {', '.join(elsewhere)}?" if elsewhere else words


def _table(path: Sequence[str]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for name in path:
        annotation = keys_of(model)[name].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(keys_of(model))


def _all_keys() -> list[str]:
    return [
        f"{name}.{key}" if key else name
        for name, field in keys_of(RunConfig).items()
        for key in (_table([name]) or [""])
        if not isinstance(field.annotation, OpenSection)
    ]

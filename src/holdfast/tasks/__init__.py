"""Tasks with verifiable answers and their rewards."""

from __future__ import annotations

import dataclasses
from types import UnionType
from typing import Any

from holdfast.errors import ConfigError, nearest
from holdfast.tasks.base import Problem, Task
from holdfast.tasks.calculator import Calculator
from holdfast.tasks.chains import Ledger, Multiplication, Sorting
from holdfast.tasks.gym import ReasoningGym
from holdfast.tasks.records import Csv, HuggingFace, JsonLines, Parquet

_TASKS: dict[str, type] = {
    "ledger": Ledger,
    "multiplication": Multiplication,
    "sorting": Sorting,
    "calculator": Calculator,
    "jsonl": JsonLines,
    "csv": Csv,
    "parquet": Parquet,
    "huggingface": HuggingFace,
    "reasoning_gym": ReasoningGym,
}

_KINDS: dict[str, tuple[type | UnionType, str]] = {
    "int": (int, "a whole number"),
    "float": (int | float, "a number"),
    "bool": (bool, "true or false"),
    "str": (str, "text"),
}

__all__ = ["Problem", "Task", "get_task", "list_tasks"]


def list_tasks() -> list[str]:
    """The names that `get_task` knows."""
    return list(_TASKS)


def get_task(name: str, **options: Any) -> Task:
    """The task of this name with these options.

    Raises:
        ConfigError: unknown task or option, or a value out of range or of the wrong type.
    """
    if name not in _TASKS:
        raise ConfigError(f"task.name = {name!r}: {nearest(name, _TASKS)}")
    fields = {f.name: f for f in dataclasses.fields(_TASKS[name]) if f.init}
    for key, value in options.items():
        if key not in fields:
            raise ConfigError(f"task {name!r} has no option {key!r}: {nearest(key, fields)}")
        kind, words = _KINDS[str(fields[key].type).removesuffix(" | None")]
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise ConfigError(f"task.{key} = {value!r}: expected {words}")
        if kind == int | float:
            options[key] = float(value)
    for key, option in fields.items():
        if option.default is dataclasses.MISSING and key not in options:
            raise ConfigError(f"task {name!r} needs task.{key}")
    return _TASKS[name](**options)

"""The configuration reference as Markdown, made from the schema itself: docs/trainer.md holds it, a test compares."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.section import keys_of


def config_reference() -> str:
    """One table per section: key, type, default, allowed values, meaning."""
    top = [(name, field) for name, field in keys_of(RunConfig).items() if _section(field) is None]
    parts = [_table("At the top of the file", RunConfig.__doc__ or "", top)]
    for name, field in keys_of(RunConfig).items():
        section = _section(field)
        if section is not None:
            parts.append(_table(f"`[{name}]`", section.__doc__ or "", list(section.model_fields.items())))
    return "\n\n".join(parts)


def _table(title: str, words: str, rows: list[tuple[str, FieldInfo]]) -> str:
    lines = [f"### {title}", "", " ".join(words.split()), "", "| key | type | default | meaning |", "|-|-|-|-|"]
    for name, field in rows:
        default = field.get_default(call_default_factory=True)
        shown = "absent" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        meaning = "; ".join(part for part in (field.description or "", _limits(field)) if part)
        lines.append(f"| `{name}` | {_type(field.annotation)} | {shown} | {meaning} |")
    return "\n".join(lines)


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _limits(field: FieldInfo) -> str:
    words = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
    return ", ".join(
        words[key].format(getattr(limit, key)) for limit in field.metadata for key in words if hasattr(limit, key)
    )


def _type(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(f"`{option}`" for option in get_args(kind))
    if get_origin(kind) is dict:
        return "table"
    if get_origin(kind) is list:
        return f"list of {_type(get_args(kind)[0])}"
    options = [option for option in get_args(kind) if option is not type(None)]
    if options:
        return " or ".join(dict.fromkeys(map(_type, options)))
    return {int: "integer", float: "number", str: "text", bool: "true or false"}[kind]

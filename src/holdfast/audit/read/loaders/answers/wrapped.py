"""An answer of a server inside the record that somebody logged it with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

DEEPEST = 5
"""Levels of objects and lists around an answer."""

Wrapped = tuple[Mapping[str, Any], tuple[Mapping[str, Any], ...]]
"""An answer, and the records it lies in: itself first, then from the innermost outwards."""


def answers_in(line: Mapping[str, Any]) -> Iterator[Wrapped]:
    """Every answer in a record, in the order in which they stand there."""
    yield from _walk(line, (), DEEPEST)


def kind_of(record: Mapping[str, Any]) -> str | None:
    """`choices`, `outputs` (vLLM), `meta_info` (SGLang), `output` (Responses API), None for no answer."""
    if _objects(record.get("choices")):
        return "choices"
    if _objects(record.get("outputs")) and any("token_ids" in entry for entry in record["outputs"]):
        return "outputs"
    meta = record.get("meta_info")
    if isinstance(meta, Mapping) and "output_token_logprobs" in meta:
        return "meta_info"
    items = record.get("output")
    if isinstance(items, list) and _objects(items) and any("type" in item for item in items):
        return "output"
    return None


def _walk(value: Any, around: tuple[Mapping[str, Any], ...], left: int) -> Iterator[Wrapped]:
    if isinstance(value, Mapping):
        layers = (value, *around)
        if kind_of(value):
            yield value, layers
        elif left:
            for inner in value.values():
                if isinstance(inner, (dict, list)):
                    yield from _walk(inner, layers, left - 1)
    elif isinstance(value, list) and left and value and isinstance(value[0], (dict, list)):
        for inner in value:
            yield from _walk(inner, around, left - 1)


def _objects(value: Any) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(isinstance(entry, Mapping) for entry in value)

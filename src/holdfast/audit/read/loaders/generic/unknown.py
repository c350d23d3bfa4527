"""What to say of a file that nobody reads: whose dump of texts it is, or which columns it has and which are missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from holdfast.audit.read.loaders.generic.rows import no_rows
from holdfast.audit.read.loaders.generic.sources import schema_of
from holdfast.audit.read.raw.fields import Unusable
from holdfast.audit.read.raw.jsonl import parse, payload

VERL = (
    "this is verl's rollout dump (trainer.rollout_data_dir: input, output, score, step). It holds texts only, and an "
    "audit needs log-probabilities of tokens: log them with Holdfast's plug-in, +policy_loss.records=/absolute/folder "
    "(docs/verl.md), and audit that folder"
)
TRL = (
    "this is TRL's table of completions (log_completions=True). It holds texts only, and an audit needs "
    "log-probabilities of tokens: train with Holdfast's trainer for TRL (docs/trl.md), which writes them to "
    "OUTPUT_DIR/_rollouts, and audit that folder"
)


def text_dump(path: Path, head: bytes) -> str | None:
    """What to do about a dump of texts, None for other files."""
    names = set(_fields(path, head))
    if {"input", "output", "score", "step"} <= names:
        return VERL
    if {"step", "prompt", "completion"} <= names and ("advantage" in names or path.name.startswith("completions_")):
        return TRL
    return None


def lacking(path: Path, head: bytes, columns: Mapping[str, str]) -> str | None:
    """Which fields a table has, and which names were looked for; None where it is no table."""
    names = _fields(path, head)
    return no_rows(dict.fromkeys(names), columns).detail if names else None


def _fields(path: Path, head: bytes) -> list[str]:
    if head.startswith(b"PAR1"):
        schema = schema_of(path)
        return list(schema.names) if schema is not None else []
    try:
        first = parse(payload(head.lstrip().splitlines()[0])) if head.strip() else None
    except Unusable:
        return []
    if isinstance(first, list) and first:
        first = first[0]
    return [str(name) for name in first] if isinstance(first, dict) else []

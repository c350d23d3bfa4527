"""What to say of a file that nobody reads: whose dump of texts it is, or which columns it has and which are missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from holdfast.audit.read.loaders.generic.rows import no_rows
from holdfast.audit.read.loaders.generic.sources import schema_of
from holdfast.audit.read.raw.fields import Unusable
from holdfast.audit.read.raw.jsonl import parse, payload

_READ_ALL_THE_SAME = (
    "With --tokenizer DIR its texts are read all the same, for rewards, lengths and repetition; --model DIR adds what "
    "a model gives to them"
)
VERL = (
    "this is verl's rollout dump (trainer.rollout_data_dir: input, output, score, step). It holds texts only, and an "
    "audit needs log-probabilities of tokens: log them with Holdfast's plug-in, +policy_loss.records=/absolute/folder "
    "(docs/verl.md), and audit that folder. " + _READ_ALL_THE_SAME
)
TRL = (
    "this is TRL's table of completions (log_completions=True). It holds texts only, and an audit needs "
    "log-probabilities of tokens: train with Holdfast's trainer for TRL (docs/trl.md), which writes them to "
    "OUTPUT_DIR/_rollouts, and audit that folder. " + _READ_ALL_THE_SAME
)
AREAL = (
    "this is AReaL's dump of trajectories (rollout.dump_to_file=true). It holds texts only, and an audit needs "
    "log-probabilities of tokens, which AReaL keeps in its trajectories and does not write. " + _READ_ALL_THE_SAME
)


def text_dump(path: Path, head: bytes) -> str | None:
    """What to do about a dump of texts, None for other files."""
    names = set(fields_of(path, head))
    if {"input", "output", "score", "step"} <= names:
        return VERL
    if {"step", "prompt", "completion"} <= names and ("advantage" in names or path.name.startswith("completions_")):
        return TRL
    if {"prompt", "completion", "tail_version"} <= names:
        return AREAL
    return None


def lacking(path: Path, head: bytes, columns: Mapping[str, str]) -> str | None:
    """Which fields a table has, and which names were looked for; None where it is no table."""
    names = fields_of(path, head)
    return no_rows(dict.fromkeys(names), columns).detail if names else None


def fields_of(path: Path, head: bytes) -> list[str]:
    """The columns of a table, or the fields of the first object of a JSON file; empty for other files."""
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

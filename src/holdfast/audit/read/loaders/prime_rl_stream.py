"""prime-rl's trace stream: monitors/file/traces/stream/NNNNN.jsonl[.zst], with what was learnt of each trace later.

A line of the stream is an episode as in `traces`. annotations/<producer>/NNNNN.jsonl[.zst] add to a trace, by its id,
the step it trained in, whether it was `effective`, and for each branch (a path from the root to a leaf, in order of the
leaves) columns over its whole length, null where unknown; the newest record wins. Traces that trained nothing are left
out where anything says which did. Source: PrimeIntellect-ai/prime-rl, `src/monitors/file/`, as of September 2026.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.audit.read.columns import Chunk, Column
from holdfast.audit.read.loaders.loader import Loader
from holdfast.audit.read.loaders.traces import RoundingWatch, trace_records
from holdfast.audit.read.raw.compressed import plain_name
from holdfast.audit.read.raw.fields import Unusable, floats, listed, mapping, whole, word
from holdfast.audit.read.raw.jsonl import json_lines
from holdfast.audit.read.raw.records import Record, pack_records
from holdfast.audit.read.reading import Reading

_COLUMNS = {
    "trainer_logprobs": "trainer_logprobs",
    "entropy": "entropies",
    "advantages": "advantages",
    "rejected": "is_masked",
}
NOT_ANNOTATED = (
    "the stream has no annotations beside it: which traces trained, in which step, and the trainer's log-probabilities "
    "are unknown"
)


@dataclass
class _Known:
    """What annotations say of one trace."""

    step: int | None = None
    effective: bool | None = None
    branches: dict[int, dict[str, Column]] = field(default_factory=dict)


def matches(path: Path, head: bytes) -> bool:
    """By its place: traces/stream/."""
    inside = path.parent.name == "stream" and path.parent.parent.name == "traces"
    return inside and plain_name(path).endswith(".jsonl")


def read(path: Path, reading: Reading) -> Iterator[Chunk]:
    """Chunks of a file; what is known of its traces is in memory, 16 bytes a token."""
    return pack_records(_records(path, reading))


def _records(path: Path, reading: Reading) -> Iterator[Record]:
    known = _annotations(path, reading)
    if not known:
        reading.note(NOT_ANNOTATED)
    some_effective = any(trace.effective for trace in known.values())
    watch, idle = RoundingWatch(reading), 0
    for number, line in json_lines(path, reading):
        try:
            found: list[Record] = []
            for trace in _traces(line):
                about = known.get(str(trace.get("id")), _Known())
                if some_effective and not about.effective:
                    idle += 1
                    continue
                for branch, record in trace_records(trace, line, about.step):
                    found.append(_annotated(record, about.branches.get(branch, {}), branch))
        except Unusable as problem:
            reading.reject(path, number, problem.kind, f"line {number + 1}: {problem.detail}")
            continue
        for record in found:
            watch.see(record)
        yield from found
    if idle:
        reading.note(f"{idle:,} traces of {path.name} trained nothing (not effective) and were left out")


def _traces(line: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those of training; evaluations share the stream."""
    if mapping(line.get("run"), "run").get("type") == "eval" or _work(line).get("type") == "eval":
        return []
    return [mapping(trace, "traces") for trace in listed(line.get("traces"), "traces")]


def _work(line: Mapping[str, Any]) -> Mapping[str, Any]:
    return mapping(mapping(line.get("run"), "run").get("work"), "run.work")


def _annotated(record: Record, columns: Mapping[str, Column], branch: int) -> Record:
    """The record with columns that cover prompt and response."""
    start, length = len(record.prompt), len(record)
    tokens = dict(record.tokens)
    for name, column in columns.items():
        if len(column) != start + length:
            detail = f"branch {branch} has {start + length} tokens, its annotation {name} {len(column)}"
            raise Unusable("lengths differ", detail)
        column = column[start:]
        if name == "rejected":
            tokens["trust_mask"] = record.tokens["response_mask"] & ~(column > 0)
        elif not np.isnan(column).all():
            tokens[name] = column
    return Record(record.prompt, tokens, record.numbers, record.words, record.texts)


def _annotations(path: Path, reading: Reading) -> dict[str, _Known]:
    """What all producers say of this file's traces; a bad record is counted and named."""
    folder = path.parent.parent / "annotations"
    files = sorted(file for file in folder.glob("*/*") if plain_name(file).endswith(".jsonl"))
    if not files:
        return {}
    quiet = Reading()
    here = {str(trace.get("id")) for _, line in json_lines(path, quiet) for trace in _all_traces(line)}
    known: dict[str, _Known] = {}
    for file in files:
        if file.name != plain_name(file) and file.with_name(plain_name(file)) in files:
            continue
        heard = Reading(rejected=reading.rejected, examples=reading.examples)
        for number, line in json_lines(file, heard):
            name = line.get("trace_id")
            if name not in here:
                continue
            try:
                _learn(known.setdefault(name, _Known()), line)
            except Unusable as problem:
                reading.reject(file, number, problem.kind, f"line {number + 1}: {problem.detail}")
    return known


def _all_traces(line: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    traces = line.get("traces")
    return [trace for trace in traces if isinstance(trace, Mapping)] if isinstance(traces, list) else []


def _learn(trace: _Known, line: Mapping[str, Any]) -> None:
    info = mapping(line.get("info"), "info")
    step = whole(mapping(info.get("ship"), "info.ship").get("step", info.get("step")), "info.step")
    subset = word(info.get("subset"), "info.subset")
    columns: dict[int, dict[str, Column]] = {}
    for entry in listed(line.get("branches"), "branches"):
        branch = mapping(entry, "branches")
        index = whole(branch.get("index"), "branches.index")
        if index is None or index < 0:
            raise Unusable("missing field", "branches.index")
        for ours, theirs in _COLUMNS.items():
            column = floats(branch.get(theirs), f"branches.{theirs}")
            if column is not None:
                columns.setdefault(index, {})[ours] = column
    # Only a record that is whole says anything.
    trace.step = trace.step if step is None else step
    if info.get("effective") is True or subset == "effective":
        trace.effective = True
    elif subset is not None or info.get("effective") is False:
        trace.effective = trace.effective or False
    for index, found in columns.items():
        trace.branches.setdefault(index, {}).update(found)


LOADER = Loader(
    name="prime_rl_stream",
    title="prime-rl trace stream",
    files="monitors/file/traces/stream/*.jsonl, *.jsonl.zst, with annotations/ beside it",
    gives="both log-probabilities, masks, turns, advantages, entropy, rewards, what its own mask rejected",
    matches=matches,
    read=read,
)

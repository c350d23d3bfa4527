"""verifiers and prime-rl traces: rollouts/step_{s}/{train,eval}/{all,effective}/traces.jsonl, a tree of messages each.

A line is an episode with traces, or one trace. A node holds the tokens that its message adds; `logprobs`,
`advantages` and, where the trainer wrote them back, `trainer_logprobs` and `entropies` have an entry per sampled token
(mask true). Each path from the root to a leaf was one training sample, and is one rollout here. Source:
PrimeIntellect-ai/verifiers, `verifiers/v1/{graph,trace,episode}.py`, and prime-rl, `monitors/file.py`, as of August
2026; the trainer's fields as in `verifiers/v1/trace_update.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from holdfast.audit.read.columns import Chunk, Column
from holdfast.audit.read.loaders.loader import Loader
from holdfast.audit.read.raw.compressed import plain_name
from holdfast.audit.read.raw.fields import LARGEST_ID, Unusable, floats, ids, listed, mapping, mask, real, whole, word
from holdfast.audit.read.raw.jsonl import read_jsonl
from holdfast.audit.read.raw.records import Record, cut, record_of
from holdfast.audit.read.reading import Reading

ROUNDING = 5e-5
ROUNDED = (
    "log-probabilities of these traces are rounded to 4 decimals: a drift below 0.00005 nats per token cannot be seen"
)
_STEP = re.compile(r"step_(\d+)$")
_COMPACT = {
    "rollout_logprobs": "logprobs",
    "trainer_logprobs": "trainer_logprobs",
    "advantages": "advantages",
    "entropy": "entropies",
}

Shared = tuple[dict[str, Any], dict[str, Any]]
"""Numbers and words that all rollouts of a trace have in common."""


def matches(path: Path, head: bytes) -> bool:
    """By the name, or by the fields of a trace."""
    return plain_name(path) == "traces.jsonl" or (b'"nodes"' in head and b'"token_ids"' in head and b'"mask"' in head)


def read(path: Path, reading: Reading) -> Iterator[Chunk]:
    """Chunks of a file; a trace of an agent that is not trained is passed over."""
    named = next((m for part in path.parts[-5:-1] if (m := _STEP.match(part))), None)
    step = int(named[1]) if named else None
    watch = RoundingWatch(reading)

    def decode(line: Mapping[str, Any]) -> Iterator[Record]:
        # All of a line or nothing of it: an episode with one bad trace is left out whole.
        records = list(_episode(line, step))
        for record in records:
            watch.see(record)
        yield from records

    return read_jsonl(path, reading, decode)


def _episode(line: Mapping[str, Any], step: int | None) -> Iterator[Record]:
    traces = line.get("traces")
    if traces is None:
        yield from (record for _, record in trace_records(line, line, step))
        return
    for index, trace in enumerate(listed(traces, "traces")):
        yield from (record for _, record in trace_records(mapping(trace, f"traces[{index}]"), line, step))


def trace_records(
    trace: Mapping[str, Any], episode: Mapping[str, Any], step: int | None
) -> Iterator[tuple[int, Record]]:
    """Each rollout of a trace of an episode with the number of its leaf; none where the agent is not trained."""
    agent = mapping(trace.get("agent"), "agent")
    if agent.get("trainable") is False:
        return
    nodes = [_Node(mapping(node, f"nodes[{i}]"), i) for i, node in enumerate(listed(trace.get("nodes"), "nodes"))]
    shared = _shared(trace, episode, step)
    for branch, path in enumerate(_paths(nodes)):
        if any(node.mask.any() for node in path):
            yield branch, _record(path, shared)


def _record(path: Sequence[_Node], shared: Shared) -> Record:
    own = np.concatenate([node.mask for node in path])
    columns = {name: _spread(path, name) for name in _COMPACT}
    prompt, sampled, response = cut(np.concatenate([node.ids for node in path]), own, columns)
    numbers, words = shared
    version = numbers.get("weight_version")
    if version is not None:
        response["weight_versions"] = np.full(len(sampled), version, np.int32)
    return record_of(prompt, response, {k: v for k, v in numbers.items() if k != "weight_version"}, words)


def _shared(trace: Mapping[str, Any], episode: Mapping[str, Any], step: int | None) -> Shared:
    environment = mapping(episode.get("env"), "env")
    work = mapping(mapping(episode.get("run"), "run").get("work"), "run.work")
    policy = mapping(work.get("policy"), "run.work.policy")
    versions = {whole(policy.get(end), f"run.work.policy.{end}", LARGEST_ID) for end in ("start", "end")}
    group = word(mapping(episode.get("group"), "group").get("id"), "group.id")
    calls = [mapping(call, "calls") for call in listed(trace.get("calls"), "calls")]
    settings = [mapping(call.get("sampling"), "sampling") for call in calls]
    sampling = {name: {real(used.get(name), name) for used in settings} for name in ("temperature", "top_p")}
    numbers = {
        "step": step if step is not None else whole(work.get("step"), "run.work.step"),
        "reward": _reward(trace),
        "group_id": None if group is None else crc32(group.encode(errors="replace")),
        "weight_version": versions.pop() if len(versions) == 1 else None,
        **{name: values.pop() for name, values in sampling.items() if len(values) == 1},
    }
    words = {
        "environment": word(environment.get("name") or environment.get("id") or None, "env"),
        "finish_reason": word(calls[-1].get("finish_reason"), "finish_reason") if calls else None,
    }
    return numbers, words


def _reward(trace: Mapping[str, Any]) -> float | None:
    rewards = mapping(trace.get("rewards"), "rewards")
    total = None
    for name, value in rewards.items():
        if value is not None:
            part = mapping(value, f"rewards.{name}")
            score, weight = real(part.get("score"), f"rewards.{name}.score"), part.get("weight", 1.0)
            total = (total or 0.0) + (score or 0.0) * (real(weight, f"rewards.{name}.weight") or 0.0)
    return total


class _Node:
    """A node's tokens; `values[name]` has one entry per sampled token."""

    def __init__(self, node: Mapping[str, Any], index: int) -> None:
        parent = whole(node.get("parent"), f"nodes[{index}].parent")
        if parent is not None and not 0 <= parent < index:
            raise Unusable("wrong parent", f"nodes[{index}].parent is {parent}: a parent stands before its child")
        self.parent = parent
        self.ids = ids(listed(node.get("token_ids"), "token_ids"), f"nodes[{index}].token_ids")
        self.mask = mask(listed(node.get("mask"), "mask"), f"nodes[{index}].mask")
        if len(self.mask) != len(self.ids):
            raise Unusable(
                "lengths differ", f"nodes[{index}]: mask has {len(self.mask)} entries, token_ids {len(self.ids)}"
            )
        sampled = int(self.mask.sum())
        self.values: dict[str, Column | None] = {}
        for name, field in _COMPACT.items():
            column = floats(node.get(field), f"nodes[{index}].{field}") if sampled else None
            # An empty list is how a writer without log-probabilities (a relay) says that it has none.
            if column is not None and len(column) not in (0, sampled):
                raise Unusable(
                    "lengths differ", f"nodes[{index}].{field} has {len(column)} entries, the mask {sampled}"
                )
            self.values[name] = column if column is not None and len(column) else None


def _paths(nodes: Sequence[_Node]) -> Iterator[list[_Node]]:
    parents = {node.parent for node in nodes}
    for leaf in range(len(nodes)):
        if leaf not in parents:
            path: list[_Node] = []
            at: int | None = leaf
            while at is not None:
                path.append(nodes[at])
                at = nodes[at].parent
            yield path[::-1]


def _spread(path: Sequence[_Node], name: str) -> Column | None:
    """Values on the sampled tokens of a path, NaN elsewhere; None where a speaking node lacks them."""
    parts = [node.values[name] for node in path if node.mask.any()]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    own = np.concatenate([node.mask for node in path])
    out = np.full(len(own), np.nan, np.float32)
    out[own] = np.concatenate(known)
    return out


class RoundingWatch:
    """Notices that a file's log-probabilities have four decimals, from its first ones."""

    def __init__(self, reading: Reading, enough: int = 64) -> None:
        self.reading, self.left = reading, enough

    def see(self, record: Record) -> None:
        """Look at the log-probabilities of a record until one has more decimals."""
        values = record.tokens.get("rollout_logprobs")
        if self.left <= 0 or values is None:
            return
        values = values[np.isfinite(values) & (values < -1e-3)][: self.left].astype(np.float64)
        if (np.abs(values - np.round(values, 4)) > 1e-6 * np.maximum(1, np.abs(values))).any():
            self.left = -1
            return
        self.left -= len(values)
        if self.left <= 0:
            self.reading.logprob_resolution = max(self.reading.logprob_resolution, ROUNDING)
            self.reading.note(ROUNDED)


LOADER = Loader(
    name="traces",
    title="verifiers / prime-rl traces",
    files="rollouts/step_*/*/*/traces.jsonl",
    gives="rollout log-probabilities, masks, turns, advantages, rewards; the trainer's where it wrote them back",
    matches=matches,
    read=read,
)

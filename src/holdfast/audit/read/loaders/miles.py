"""miles' train dumps: train_data/{id}_{rank}.pt, one file per rank, joined into whole sequences.

Ranks of data parallelism hold different samples; of tensor parallelism the same; of pipeline parallelism, only the
last has log-probabilities; of context parallelism, each has two stretches of every per-token field: with the sequence
cut into 2C equal pieces, rank c holds pieces c and 2C-1-c. Source: radixark/miles,
`miles/utils/train_dump_utils.py` and `miles/backends/training_utils/cp_utils.py`, as of August 2026.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.audit.read.columns import Chunk, Column
from holdfast.audit.read.loaders.loader import Loader
from holdfast.audit.read.loaders.slime import sample_record
from holdfast.audit.read.raw.compressed import plain_name
from holdfast.audit.read.raw.fields import Unusable, floats, ids, whole
from holdfast.audit.read.raw.records import Record, pack_records
from holdfast.audit.read.raw.torch_files import ZIP, load, plain
from holdfast.audit.read.reading import Reading
from holdfast.errors import DataError

_NAME = re.compile(r"(.+)_(\d+)\.pt$")
_HEAD = re.compile(rb"rollout_id.{0,64}rank.{0,64}rollout_data", re.DOTALL)
_SHARDED = ("log_probs", "rollout_log_probs", "entropy", "advantages")
_WHOLE = ("tokens", "response_lengths", "loss_masks", "truncated", "weight_versions", "partition")


def matches(path: Path, head: bytes) -> bool:
    """A file of torch.save with the first keys of a rank's dump."""
    return head.startswith(ZIP) and bool(_HEAD.search(head))


def siblings(path: Path) -> list[Path]:
    """The files of all ranks of a step, in order of rank."""
    name = _NAME.match(plain_name(path))
    if name is None:
        return [path]
    found = [
        (int(m[2]), other)
        for other in path.parent.glob("*.pt*")
        if (m := _NAME.match(plain_name(other))) and m[1] == name[1]
    ]
    return [other for _, other in sorted(found)]


def read(path: Path, reading: Reading) -> Iterator[Chunk]:
    """Chunks of the step that a file belongs to, all ranks joined; the whole step is in memory at once."""
    shards = []
    try:
        for file in siblings(path):
            payload = load(file, reading)
            columns = payload.get("rollout_data")
            if not isinstance(columns, dict) or not _lists(columns):
                raise DataError(f"{file} has no lists of tokens and response_lengths: it is no train dump of miles")
            shards.append({**payload, "rollout_data": columns})
        yield from pack_records(_records(path, shards, reading))
    except Unusable as problem:  # of no sample of its own
        raise DataError(f"{path}: {problem}") from None
    reading.advance(path.stat().st_size)


def _lists(columns: Mapping[str, Any]) -> bool:
    return all(isinstance(plain(columns.get(name)), (list, np.ndarray)) for name in ("tokens", "response_lengths"))


def _records(path: Path, shards: Sequence[Mapping[str, Any]], reading: Reading) -> Iterator[Record]:
    rewards = next((s["rollout_data"]["raw_reward"] for s in shards if "raw_reward" in s["rollout_data"]), None)
    step = {"rollout_id": shards[0].get("rollout_id"), "raw_reward": rewards}
    for number, places in enumerate(_places(shards).values()):
        try:
            yield sample_record(_joined([(shards[shard], row) for shard, row in places]), step, reading)
        except Unusable as problem:
            reading.reject(path, number, problem.kind, f"sample {number}: {problem.detail}")


def _places(shards: Sequence[Mapping[str, Any]]) -> dict[Any, list[tuple[int, int]]]:
    """(shard, row) of every copy of a sample, by its index; without an index every row is a sample of its own."""
    places: dict[Any, list[tuple[int, int]]] = {}
    for shard, payload in enumerate(shards):
        columns = payload["rollout_data"]
        for row in range(len(columns["tokens"])):
            number = _cell(columns, "sample_indices", row)
            places.setdefault(number if isinstance(number, int) else (shard, row), []).append((shard, row))
    return places


def _joined(copies: Sequence[tuple[Mapping[str, Any], int]]) -> dict[str, Any]:
    """One sample from all its copies, under the names of slime's train dump."""
    shard, row = copies[0]
    sample = {name: _cell(shard["rollout_data"], name, row) for name in _WHOLE}
    sample["sample_index"] = _cell(shard["rollout_data"], "sample_indices", row)
    size = whole(shard.get("cp_size"), "cp_size", 1 << 16) or 1
    if size < 1:
        raise Unusable("context-parallel parts", f"cp_size is {size}")
    for name in _SHARDED:
        parts = {}
        for payload, row in copies:
            part = floats(_cell(payload["rollout_data"], name, row), name)
            if part is not None:
                parts.setdefault(whole(payload.get("cp_rank"), "cp_rank", 1 << 16) or 0, part)
        if size == 1:
            sample[name] = parts.get(0)
        elif parts:
            sample[name] = _whole_response(parts, sample, size, _padded(copies[0]), name)
    return sample


def _whole_response(
    parts: Mapping[int, Column], sample: Mapping[str, Any], size: int, padded: int | None, name: str
) -> Column:
    """A field of the whole response from the stretches of `size` context-parallel ranks."""
    total, response = len(ids(sample["tokens"], "tokens")), whole(sample["response_lengths"], "response_lengths")
    if response is None or not 0 <= response <= total:
        raise Unusable("lengths differ", f"response_lengths is {response}, tokens has {total} entries")
    if padded is not None and padded < total:
        raise Unusable("lengths differ", f"max_seq_lens is {padded}, tokens has {total} entries")
    first = total - response - 1
    piece = -(-(padded or total) // (2 * size))
    out = np.full(response, np.nan, np.float32)
    for rank in range(size):
        stretches = [
            np.arange(max(k * piece, first), min((k + 1) * piece, total - 1)) for k in (rank, 2 * size - 1 - rank)
        ]
        places = np.concatenate(stretches) - first
        if rank not in parts or len(parts[rank]) != len(places):
            have = len(parts[rank]) if rank in parts else "no"
            raise Unusable(
                "context-parallel parts", f"{name}: rank {rank} of {size} has {have} entries, not {len(places)}"
            )
        out[places] = parts[rank]
    return out


def _padded(copy: tuple[Mapping[str, Any], int]) -> int | None:
    """The length that was cut into pieces, where it is not the sequence's own."""
    payload, row = copy
    if payload.get("qkv_format", "thd") == "thd":
        return None
    return whole(_cell(payload["rollout_data"], "max_seq_lens", row), "max_seq_lens", 1 << 40)


def _cell(columns: Mapping[str, Any], name: str, row: int) -> Any:
    """Entry of a row, None where the column is missing or shorter."""
    column = plain(columns.get(name))
    return plain(column[row]) if isinstance(column, (list, np.ndarray)) and 0 <= row < len(column) else None


LOADER = Loader(
    name="miles",
    title="miles",
    files="train_data/*_*.pt, one per rank",
    gives="both log-probabilities, masks, advantages, entropy, rewards",
    matches=matches,
    read=read,
)

"""Pickled batches (SkyRL's dumped_data/*.pkl): refused, because reading a pickle runs whatever code is in it.

With `--allow-pickle` SkyRL's TrainingInputBatch is read without SkyRL: classes that are not installed become plain
dictionaries. Source: NovaSky-AI/SkyRL, `skyrl/backends/skyrl_train/training_batch.py`, as of August 2026. Pickles of
ROLL (DataProto over tensordict) are recognised and refused with and without the flag.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from holdfast.audit.read.columns import Chunk
from holdfast.audit.read.loaders.loader import ROLLOUT_ONLY, Loader
from holdfast.audit.read.raw.compressed import open_unpacked, plain_name
from holdfast.audit.read.raw.fields import Unusable, flags, floats, ids
from holdfast.audit.read.raw.records import Record, pack_records, record_of, turns_of
from holdfast.audit.read.raw.torch_files import plain
from holdfast.audit.read.reading import Reading
from holdfast.errors import DataError

_NEEDED = ("sequences", "attention_mask", "response_mask", "rollout_logprobs")


def matches(path: Path, head: bytes) -> bool:
    """A pickle by its name and its first byte."""
    return plain_name(path).endswith((".pkl", ".pickle")) and head.startswith(b"\x80")


def read(path: Path, reading: Reading) -> Iterator[Chunk]:
    """Chunks of a file, if pickles are allowed; the whole file is in memory at once."""
    if not reading.allow_pickle:
        raise DataError(
            f"{path} is a pickle: reading it runs whatever code is in it, so it is left alone. If you trust whoever "
            "wrote it, use --allow-pickle"
        )
    batch = _batch(path)
    lacking = [name for name in _NEEDED if getattr(batch.get(name), "ndim", 0) != 2]
    if lacking:
        raise DataError(
            f"{path} is a pickle without SkyRL's {', '.join(lacking)}: of pickles, only SkyRL's can be read"
        )
    yield from pack_records(_records(path, {name: batch.get(name) for name in _FIELDS}, reading))
    reading.advance(path.stat().st_size)


_FIELDS = (*_NEEDED, "loss_mask", "action_log_probs", "advantages", "rewards")


def _batch(path: Path) -> Mapping[str, Any]:
    try:
        file, _ = open_unpacked(path)
        with file:
            value = _Lenient(file).load()
        return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else {}
    except Exception as error:  # a pickle can raise anything
        raise DataError(f"{path} could not be unpickled: {type(error).__name__}: {error}") from error


class _Lenient(pickle.Unpickler):
    """Replaces classes that are not installed by dictionaries."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            return type(name, (dict,), {"__setstate__": lambda self, state: None})


def _records(path: Path, batch: Mapping[str, Any], reading: Reading) -> Iterator[Record]:
    for row in range(len(batch["sequences"])):
        try:
            yield _record({name: value[row] for name, value in batch.items() if value is not None})
        except (Unusable, IndexError) as problem:
            detail = problem.detail if isinstance(problem, Unusable) else str(problem)
            reading.reject(path, row, getattr(problem, "kind", "lengths differ"), f"row {row}: {detail}")
    if batch["action_log_probs"] is None:
        reading.note(ROLLOUT_ONLY)


def _record(row: Mapping[str, Any]) -> Record:
    """The last columns of `sequences` are those of every field of the response; `response_mask` says which are real."""
    tokens, real = ids(row["sequences"], "sequences"), flags(row["attention_mask"], "attention_mask")
    response = flags(row["response_mask"], "response_mask")
    if real is None or response is None or len(real) != len(tokens) or len(response) > len(tokens):
        raise Unusable("lengths differ", f"attention_mask or response_mask do not fit {len(tokens)} sequences entries")
    start = len(tokens) - len(response)
    prompt = real.copy()
    prompt[start:] &= ~response

    def of(name: str) -> Any:
        column = floats(row.get(name), name)
        if column is not None and len(column) != len(response):
            raise Unusable("lengths differ", f"{name} has {len(column)} entries, response_mask {len(response)}")
        return None if column is None else column[response]

    own = of("loss_mask")
    mask = own > 0 if own is not None else response[response]
    rewards = of("rewards")
    return record_of(
        tokens[prompt],
        {
            "response_ids": tokens[start:][response],
            "response_mask": mask,
            "turn_ids": turns_of(mask),
            "rollout_logprobs": of("rollout_logprobs"),
            "trainer_logprobs": of("action_log_probs"),
            "advantages": of("advantages"),
        },
        numbers={"reward": None if rewards is None else float(rewards.sum())},
    )


LOADER = Loader(
    name="pickles",
    title="SkyRL pickles",
    files="dumped_data/*.pkl, with --allow-pickle only",
    gives="both log-probabilities, masks, advantages, rewards",
    matches=matches,
    read=read,
)

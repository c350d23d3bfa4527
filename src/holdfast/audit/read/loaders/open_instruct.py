"""open-instruct's saved traces: {run}_rollouts_{shard}.jsonl, the engine's log-probabilities only.

Source: allenai/open-instruct, `open_instruct/rl_utils.py` (RolloutRecord) and `vllm_utils.py`, as of August 2026. It
saves no mask: tokens of a tool's output have log-probability 0, the end token put into an empty response has NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.audit.read.columns import Chunk
from holdfast.audit.read.loaders.loader import ROLLOUT_ONLY, Loader
from holdfast.audit.read.raw.fields import floats, ids, mapping, needed, real, whole, word
from holdfast.audit.read.raw.jsonl import read_jsonl
from holdfast.audit.read.raw.records import Record, record_of, turns_of
from holdfast.audit.read.reading import Reading

TOOLS = (
    "open-instruct saves no mask: in responses with tool calls, tokens with a log-probability of exactly 0 are taken "
    "for tool output"
)


def matches(path: Path, head: bytes) -> bool:
    """By the fields of a record."""
    return b'"prompt_idx"' in head and b'"prompt_tokens"' in head


def read(path: Path, reading: Reading) -> Iterator[Chunk]:
    """Chunks of a file."""

    def decode(line: Mapping[str, Any]) -> Iterator[Record]:
        yield _record(line, reading)

    return read_jsonl(path, reading, decode)


def _record(line: Mapping[str, Any], reading: Reading) -> Record:
    response = ids(needed(line, "response_tokens"), "response_tokens")
    logprobs = floats(line.get("logprobs"), "logprobs")
    tokens: dict[str, np.ndarray | None] = {"response_ids": response, "rollout_logprobs": logprobs}
    advantage = real(line.get("advantage"), "advantage")
    if advantage is not None:
        tokens["advantages"] = np.full(len(response), advantage, np.float32)
    if logprobs is not None:
        own = ~(np.isnan(logprobs) & (len(logprobs) == 1))
        if whole(mapping(line.get("request_info"), "request_info").get("num_calls"), "request_info.num_calls"):
            own &= logprobs != 0
            tokens["turn_ids"] = turns_of(own)
            reading.note(TOOLS)
        tokens["response_mask"] = own
    reading.note(ROLLOUT_ONLY)
    dataset = line.get("dataset")
    return record_of(
        ids(needed(line, "prompt_tokens"), "prompt_tokens"),
        tokens,
        numbers={
            "step": whole(line.get("step"), "step"),
            "sequence_id": whole(line.get("sample_idx"), "sample_idx"),
            "group_id": whole(line.get("prompt_idx"), "prompt_idx"),
            "reward": real(line.get("reward"), "reward"),
        },
        words={
            "finish_reason": word(line.get("finish_reason"), "finish_reason"),
            "environment": dataset if isinstance(dataset, str) else None,
        },
    )


LOADER = Loader(
    name="open_instruct",
    title="open-instruct",
    files="*_rollouts_*.jsonl",
    gives="rollout log-probabilities, rewards, advantages",
    matches=matches,
    read=read,
)

"""NeMo-RL's train_data_step{N}.jsonl: whole padded sequences with both log-probabilities.

One line per sequence, each value in a list of length one. Every token field covers prompt, response and padding;
entry t of both log-probabilities scores token_ids[t]. Source: NVIDIA-NeMo/RL, `nemo_rl/algorithms/grpo.py` and
`Logger.log_batched_dict_as_jsonl`, as of August 2026.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.audit.read.columns import Chunk
from holdfast.audit.read.loaders.loader import Loader
from holdfast.audit.read.raw.compressed import plain_name
from holdfast.audit.read.raw.fields import Unusable, floats, ids, mask, needed, real, same_lengths, whole, word
from holdfast.audit.read.raw.jsonl import read_jsonl
from holdfast.audit.read.raw.records import Record, cut, record_of
from holdfast.audit.read.reading import Reading

_NAME = re.compile(r"train_data_step(\d+)\.jsonl$")
PLACEHOLDER = (
    "NeMo-RL wrote zeros for prev_logprobs, as it does under force_on_policy_ratio: the trainer's log-probabilities of "
    "those sequences are unknown"
)


def matches(path: Path, head: bytes) -> bool:
    """By the file's name, or by its fields."""
    return bool(_NAME.search(plain_name(path))) or (b'"token_loss_mask"' in head or b'"input_lengths"' in head)


def read(path: Path, reading: Reading) -> Iterator[Chunk]:
    """Chunks of a file; distillation runs write the same name without tokens, and none of their records is usable."""
    name = _NAME.search(plain_name(path))
    step = int(name[1]) if name else None

    def decode(line: Mapping[str, Any]) -> Iterator[Record]:
        yield _record({key: _unwrapped(value) for key, value in line.items()}, step, reading)

    return read_jsonl(path, reading, decode)


def _record(line: Mapping[str, Any], step: int | None, reading: Reading) -> Record:
    tokens = ids(needed(line, "token_ids"), "token_ids")
    padded, length = len(tokens), whole(needed(line, "input_lengths"), "input_lengths") or 0
    if not 0 < length <= padded:
        raise Unusable("lengths differ", f"input_lengths is {length}, token_ids has {padded} entries")
    own = mask(line.get("token_loss_mask"), "token_loss_mask")
    full = {
        "rollout_logprobs": floats(line.get("generation_logprobs"), "generation_logprobs"),
        "trainer_logprobs": floats(line.get("prev_logprobs"), "prev_logprobs"),
        "advantages": _advantages(line, padded),
    }
    same_lengths({"token_loss_mask": own, **full}, padded, "token_ids")
    short = {name: None if column is None else column[:length] for name, column in full.items()}
    prompt, sampled, response = cut(tokens[:length], own[:length], short)
    trainer = response["trainer_logprobs"]
    if trainer is not None and not trainer.any():
        response["trainer_logprobs"] = None
        reading.note(PLACEHOLDER)
    trained = real(line.get("sample_loss_mask"), "sample_loss_mask")
    if trained is not None:
        response["trust_mask"] = sampled & (trained > 0)
    reward = line["filtered_rewards"] if line.get("filtered_rewards") is not None else line.get("rewards")
    agent = line.get("agent_ref")
    return record_of(
        prompt,
        response,
        numbers={"step": step, "reward": real(reward, "rewards")},
        words={
            "environment": word(agent.get("name"), "agent_ref.name") if isinstance(agent, Mapping) else None,
            "mask_reason": "sample_loss_mask" if trained == 0 else None,
        },
    )


def _advantages(line: Mapping[str, Any], length: int) -> np.ndarray | None:
    value = line.get("advantages")
    if isinstance(value, (int, float)):
        value = [value]
    column = floats(value, "advantages")
    return np.full(length, column[0]) if column is not None and len(column) == 1 else column


def _unwrapped(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


LOADER = Loader(
    name="nemo_rl",
    title="NeMo-RL",
    files="train_data_step*.jsonl",
    gives="both log-probabilities, masks, advantages, rewards",
    matches=matches,
    read=read,
)

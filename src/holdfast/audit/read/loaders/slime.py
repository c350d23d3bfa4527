"""slime's debug dumps: train_data/{id}.pt with both log-probabilities, rollout_data/{id}.pt with the engine's only.

Both hold `samples`, a dictionary per sequence; log-probabilities, masks and advantages cover the response. miles
writes its rollout dumps the same way. Source: THUDM/slime, `slime/observability/{rollout,train}_data_utils.py` and
`slime/utils/types.py` (Sample), format_version 2, as of August 2026.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.audit.read.columns import Chunk, Column
from holdfast.audit.read.loaders.loader import ROLLOUT_ONLY, Loader
from holdfast.audit.read.raw.fields import Unusable, digits, flags, floats, ids, mapping, real, whole, word
from holdfast.audit.read.raw.records import Record, pack_records, record_of, turns_of
from holdfast.audit.read.raw.torch_files import ZIP, load, plain
from holdfast.audit.read.reading import Reading
from holdfast.errors import DataError

FORMAT_VERSION = 2
_FINISH = {"completed": "stop", "truncated": "length", "aborted": "abort"}


def matches(path: Path, head: bytes) -> bool:
    """A file of torch.save with the first keys of a dump."""
    return head.startswith(ZIP) and b"rollout_id" in head and b"samples" in head


def read(path: Path, reading: Reading) -> Iterator[Chunk]:
    """Chunks of a file; the whole step is in memory at once."""
    payload = load(path, reading)
    version = payload.get("format_version", FORMAT_VERSION)
    if not isinstance(payload.get("samples"), list) or not isinstance(version, int):
        raise DataError(f"{path} has no list of samples: it is no dump of slime")
    if version > FORMAT_VERSION:
        raise DataError(f"{path} has format_version {version}, this version of Holdfast reads up to {FORMAT_VERSION}")
    yield from pack_records(_records(path, payload, reading))
    reading.advance(path.stat().st_size)


def _records(path: Path, payload: Mapping[str, Any], reading: Reading) -> Iterator[Record]:
    for number, sample in enumerate(payload["samples"]):
        try:
            yield sample_record(mapping(sample, "sample"), payload, reading)
        except Unusable as problem:
            reading.reject(path, number, problem.kind, f"sample {number}: {problem.detail}")


def sample_record(sample: Mapping[str, Any], payload: Mapping[str, Any], reading: Reading) -> Record:
    """One sample of a train dump (names in the plural) or a rollout dump (in the singular)."""

    def get(*names: str) -> Any:
        return next((plain(sample[name]) for name in names if sample.get(name) is not None), None)

    tokens = ids(get("tokens"), "tokens")
    length = whole(get("response_lengths", "response_length"), "response_length")
    if length is None or not 0 <= length <= len(tokens):
        raise Unusable("lengths differ", f"response_length is {length}, tokens has {len(tokens)} entries")
    mask = flags(get("loss_masks", "loss_mask"), "loss_mask")
    own = np.ones(length, bool) if mask is None else mask
    columns: dict[str, Column | None] = {
        "response_ids": tokens[len(tokens) - length :],
        "rollout_logprobs": floats(get("rollout_log_probs"), "rollout_log_probs"),
        "trainer_logprobs": floats(get("log_probs"), "log_probs"),
        "advantages": floats(get("advantages"), "advantages"),
        "entropy": floats(get("entropy"), "entropy"),
        "response_mask": own,
        "turn_ids": turns_of(own),
        "weight_versions": _versions(get("weight_versions"), turns_of(own)),
    }
    removed = sample.get("remove_sample") is True
    if removed:
        columns["trust_mask"] = np.zeros(length, bool)
    if columns["trainer_logprobs"] is None:
        reading.note(ROLLOUT_ONLY)
    return record_of(
        tokens[: len(tokens) - length],
        columns,
        numbers={
            "step": whole(payload.get("rollout_id"), "rollout_id"),
            "sequence_id": whole(get("sample_index", "index"), "index"),
            "group_id": whole(get("group_index"), "group_index"),
            "reward": _reward(get, payload),
        },
        words={
            "finish_reason": _finish(get("status"), get("truncated")),
            "environment": _text(get("source_names")),
            "mask_reason": "remove_sample" if removed else None,
        },
        texts={"prompt_text": _text(get("prompt")), "response_text": _text(get("response"))},
    )


def _reward(get: Any, payload: Mapping[str, Any]) -> float | None:
    """The reward as judged; `rewards` of a train dump are already normalised over the group and are no rewards."""
    place, all_rewards = get("rollout_position", "partition"), plain(payload.get("raw_reward"))
    if isinstance(place, int) and isinstance(all_rewards, list) and 0 <= place < len(all_rewards):
        reward = plain(all_rewards[place])
    else:
        reward = get("reward")
    if isinstance(reward, Mapping):
        values = [v for v in reward.values() if isinstance(v, (int, float))]
        reward = values[0] if len(values) == 1 else None
    return real(reward, "reward")


def _versions(versions: Any, turns: Column) -> Column | None:
    """Engines report a version per call: known per token where all are equal, or where each turn has its own."""
    if not isinstance(versions, list) or not versions or not len(turns):
        return None
    known = [digits(version) for version in versions]
    if None in known:
        return None
    numbers = np.array(known, np.int32)
    if (numbers == numbers[0]).all():
        return np.full(len(turns), numbers[0], np.int32)
    return numbers[turns] if len(numbers) == turns[-1] + 1 else None


def _finish(status: Any, truncated: Any) -> str | None:
    if isinstance(truncated, int):
        return "length" if truncated else "stop"
    status = word(status, "status")
    return _FINISH.get(status, status) if status else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


LOADER = Loader(
    name="slime",
    title="slime (and miles rollouts)",
    files="train_data/*.pt, rollout_data/*.pt",
    gives="both log-probabilities, masks, advantages, rewards; rollout_data: the engine's log-probabilities only",
    matches=matches,
    read=read,
)

"""prime-rl's token exports: token_exports/step_{s}/rank_{r}.jsonl, written with `trainer.enable_token_export = true`.

One line per sequence; every token field covers prompt and response, and entry t of both log-probabilities scores
token_ids[t] (the trainer shifts its own before it writes). null stands for a value that was not finite. Source:
PrimeIntellect-ai/prime-rl, `src/prime_rl/trainer/rl/token_export.py`, schema_version 1, as of August 2026.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.audit.read.columns import Chunk
from holdfast.audit.read.loaders.loader import Loader
from holdfast.audit.read.raw.compressed import plain_name
from holdfast.audit.read.raw.fields import Unusable, flags, floats, ids, mask, needed, same_lengths, whole, word
from holdfast.audit.read.raw.jsonl import read_jsonl
from holdfast.audit.read.raw.records import Record, cut, record_of
from holdfast.audit.read.reading import Reading

SCHEMA_VERSION = 1
_UNUSED = (
    *("position_ids", "mismatch_kl", "log_importance_ratio", "importance_ratio", "prob_delta"),
    *("is_masked_high", "is_masked_low", "ce_weights"),
)
"""Arrays that follow from others."""


def matches(path: Path, head: bytes) -> bool:
    """By the fields that start every line."""
    return b'"export_sequence_idx"' in head or (
        path.parent.parent.name == "token_exports" and plain_name(path).endswith(".jsonl")
    )


def read(path: Path, reading: Reading) -> Iterator[Chunk]:
    """Chunks of a file."""
    return read_jsonl(path, reading, _records, _UNUSED)


def _records(line: Mapping[str, Any]) -> Iterator[Record]:
    version = whole(line.get("schema_version"), "schema_version")
    if version is not None and version > SCHEMA_VERSION:
        raise Unusable("newer schema", f"schema_version is {version}, this version of Holdfast reads {SCHEMA_VERSION}")
    trained = mask(line.get("loss_mask"), "loss_mask")
    rejected = flags(line.get("is_masked"), "is_masked")
    weights = {name: floats(line.get(name), name) for name in ("rl_weights", "ref_kl_weights")}
    same_lengths(weights, len(trained), "loss_mask")
    streams = [stream != 0 for stream in weights.values() if stream is not None]
    # With component weights, a token that only the cross-entropy term trains came from another model.
    own = trained & np.any(streams, axis=0) if streams else trained
    prompt, sampled, response = cut(
        ids(needed(line, "token_ids"), "token_ids"),
        own,
        {
            "rollout_logprobs": floats(line.get("inference_logprobs"), "inference_logprobs"),
            "trainer_logprobs": floats(line.get("trainer_logprobs"), "trainer_logprobs"),
            "entropy": floats(line.get("entropy"), "entropy"),
            "advantages": floats(line.get("advantages"), "advantages"),
            "trust_mask": rejected,
        },
    )
    if rejected is not None:
        response["trust_mask"] = sampled & ~response["trust_mask"]
    yield record_of(
        prompt,
        response,
        numbers={"step": whole(line.get("step"), "step")},
        words={
            "environment": word(line.get("env_name"), "env_name"),
            "mask_reason": "is_masked" if rejected is not None and rejected.any() else None,
        },
    )


LOADER = Loader(
    name="prime_rl_tokens",
    title="prime-rl token exports",
    files="token_exports/step_*/rank_*.jsonl",
    gives="both log-probabilities, masks, advantages, entropy, what its own mask rejected",
    matches=matches,
    read=read,
)

"""SGLang's own `/generate`: `meta_info.output_token_logprobs` has [log-probability, id, text or null] for each token.

The prompt's ids are `input_ids` beside the answer, or `input_token_logprobs` where it covers the whole prompt. Fields:
sgl-project/sglang, `python/sglang/srt/managers/tokenizer_manager.py`, as of August 2026.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.audit.read.columns import Column
from holdfast.audit.read.raw.fields import Unusable, floats, ids, listed, mapping, needed, word
from holdfast.audit.read.raw.names import Facts, find, versions
from holdfast.audit.read.raw.records import Record, record_of
from holdfast.audit.read.reading import Reading

NO_PROMPT = (
    "SGLang's answers do not hold the prompt's ids: answers of one prompt cannot be told from others. Log input_ids "
    "beside the answer, or ask with logprob_start_len=0"
)


def sglang_record(
    answer: Mapping[str, Any], layers: Sequence[Mapping[str, Any]], facts: Facts, reading: Reading
) -> Record:
    """One answer; raises Unusable where ids and log-probabilities disagree."""
    meta = mapping(answer["meta_info"], "meta_info")
    entries = listed(needed(meta, "output_token_logprobs"), "output_token_logprobs")
    if any(not isinstance(entry, list) or len(entry) < 2 for entry in entries):
        raise Unusable("wrong type", "output_token_logprobs holds something other than [log-probability, id, text]")
    tokens = ids([entry[1] for entry in entries], "output_token_logprobs")
    given = answer.get("output_ids")
    if given is not None:
        written = ids(given, "output_ids")
        if len(written) != len(tokens):
            raise Unusable("lengths differ", f"output_ids has {len(written)}, output_token_logprobs {len(tokens)}")
        if (written != tokens).any():
            raise Unusable("ids disagree", "output_ids and the ids of output_token_logprobs are not the same")
    texts = [entry[2] if len(entry) > 2 else None for entry in entries]
    numbers, words = facts
    return record_of(
        _prompt(meta, layers, reading),
        {
            "response_ids": tokens,
            "rollout_logprobs": floats([entry[0] for entry in entries], "output_token_logprobs"),
            "weight_versions": versions(meta.get("weight_version"), len(tokens)),
        },
        numbers,
        words | {"finish_reason": _finish(meta.get("finish_reason"))},
        texts={
            "response_text": word(answer.get("text"), "text"),
            "token_texts": tuple(texts) if texts and all(isinstance(text, str) for text in texts) else None,
        },
    )


def _finish(value: Any) -> str | None:
    return word(value.get("type") if isinstance(value, Mapping) else value, "finish_reason")


def _prompt(meta: Mapping[str, Any], layers: Sequence[Mapping[str, Any]], reading: Reading) -> Column:
    for layer in layers:
        found = find(layer, "prompt_ids", reading.columns) or (
            ("input_ids", layer["input_ids"]) if layer.get("input_ids") is not None else None
        )
        if found is not None and isinstance(found[1], list):
            return ids(found[1], found[0])
    entries = listed(meta.get("input_token_logprobs"), "input_token_logprobs")
    if (
        entries
        and len(entries) == meta.get("prompt_tokens")
        and all(isinstance(e, list) and len(e) > 1 for e in entries)
    ):
        return ids([entry[1] for entry in entries], "input_token_logprobs")
    reading.note(NO_PROMPT)
    return ids([], "input_ids")

"""Answers of servers, saved as JSON Lines or JSON: the engine's log-probabilities only.

Chat completions, completions, streams of either (joined by id), OpenAI's batch output, the Responses API, vLLM's own
RequestOutput as a dictionary, SGLang's `/generate`, and all of them inside records of somebody's own. With vLLM's
`return_token_ids` (or `return_tokens_as_token_ids`) the token ids are there;
OpenAI gives the texts only. Fields: `vllm.entrypoints.openai` 0.32 and the OpenAI API reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from holdfast.audit.read.columns import Chunk, Column, Likeliest
from holdfast.audit.read.loaders.answers.sglang import sglang_record
from holdfast.audit.read.loaders.answers.turns import gym_records, has_ids
from holdfast.audit.read.loaders.answers.wrapped import answers_in, kind_of
from holdfast.audit.read.loaders.loader import ROLLOUT_ONLY, Loader
from holdfast.audit.read.raw.fields import (
    Unusable,
    digits,
    floats,
    ids,
    listed,
    mapping,
    needed,
    same_lengths,
    word,
)
from holdfast.audit.read.raw.jsonl import is_lines, read_jsonl, read_objects
from holdfast.audit.read.raw.names import Facts, facts_of, find, versions
from holdfast.audit.read.raw.records import Record, record_of
from holdfast.audit.read.raw.streams import Streams
from holdfast.audit.read.reading import Reading
from holdfast.rollout.outside.external import ROUNDING

STAND_IN = (
    "this log has no token ids, only token texts: ids shown are stand-ins made from the text. vLLM gives real ones "
    'with "return_token_ids": true in the request'
)
_SIGNS = (b'"choices"', b'"outputs"', b'"output_text"')
_PREFIX = "token_id:"
Layers = Sequence[Mapping[str, Any]]
NEVER_SAMPLED = -9999.0
"""What vLLM's server writes for a log-probability of minus infinity."""


def matches(path: Path, head: bytes) -> bool:
    """By the fields of an answer with log-probabilities."""
    if b'"output_token_logprobs"' in head or b'"generation_log_probs"' in head:
        return False
    return b'"logprob' in head and any(sign in head for sign in _SIGNS)


def matches_sglang(path: Path, head: bytes) -> bool:
    """By the fields of `/generate`."""
    return b'"output_token_logprobs"' in head and b'"meta_info"' in head


def matches_gym(path: Path, head: bytes) -> bool:
    """By the token ids that NeMo-Gym adds to the Responses API."""
    return b'"generation_log_probs"' in head and b'"output"' in head


def read(path: Path, reading: Reading) -> Iterator[Chunk]:
    """Chunks of a file; a JSON array or one indented object is read whole."""
    streams = Streams()

    def decode(line: Mapping[str, Any]) -> Iterator[Record]:
        return _records(streams.joined(line), reading=reading)

    def finish() -> Iterator[Record]:
        return _records(streams.rest(), reading=reading)

    if is_lines(path):
        return read_jsonl(path, reading, decode, finish=finish)
    return read_objects(path, reading, decode, finish)


def _records(lines: Iterable[Mapping[str, Any]], reading: Reading) -> Iterator[Record]:
    for line in lines:
        yield from _line(line, reading)


def _line(line: Mapping[str, Any], reading: Reading) -> Iterator[Record]:
    found = [record for answer, layers in answers_in(line) for record in _answer(answer, layers, reading)]
    if not found:
        where = next((name for name in ("choices", "outputs", "output", "meta_info") if name in line), None)
        raise Unusable(
            "missing field", f"{where} holds no answer" if where else "choices, outputs, output or meta_info"
        )
    reading.note(ROLLOUT_ONLY)
    yield from found


def _answer(answer: Mapping[str, Any], layers: Layers, reading: Reading) -> Iterator[Record]:
    facts, kind = facts_of(layers, reading), kind_of(answer)
    if kind == "meta_info":
        yield sglang_record(answer, layers, facts, reading)
    elif kind == "output" and has_ids(answer):
        yield from gym_records(answer, facts, reading)
    elif kind == "output":
        yield _response(answer, facts, reading)
    elif kind == "outputs":
        for output in answer["outputs"]:
            yield _output(output, answer, facts, reading)
    else:
        for choice in answer["choices"]:
            yield _choice(choice, layers, facts, reading)


def _response(answer: Mapping[str, Any], facts: Facts, reading: Reading) -> Record:
    """An answer of the Responses API: what its messages say, in one piece."""
    content, text, silent = [], [], set()
    for item in answer["output"]:
        parts = [mapping(part, "output.content") for part in listed(item.get("content"), "output.content")]
        if item.get("type") != "message":
            silent.add(word(item.get("type"), "output.type"))
        for part in parts if item.get("type") == "message" else ():
            content += listed(part.get("logprobs"), "output.content.logprobs")
            text.append(word(part.get("text"), "output.content.text") or "")
    if not content:
        asked = 'output.content.logprobs (ask for them with "include": ["message.output_text.logprobs"])'
        raise Unusable("missing field", asked)
    if silent:
        names = ", ".join(sorted(str(name) for name in silent))
        reading.note(
            f"the Responses API gives log-probabilities of messages only: tokens of {names} are not in this log"
        )
    texts = _texts(_each(content, "token"), "token")
    tokens = _ids_of(texts, reading)
    tables = [_table(entry.get("top_logprobs")) for entry in content] if reading.likeliest else []
    numbers, words = facts
    return record_of(
        ids([], "prompt"),
        {"response_ids": tokens, "rollout_logprobs": _unsampled(floats(_each(content, "logprob"), "logprob"))},
        numbers,
        words | {"finish_reason": words["finish_reason"] or _status(answer)},
        texts={"response_text": "".join(text), "token_texts": tuple(texts)},
        likeliest=_likeliest(tables, len(tokens), _PREFIX),
    )


def _status(answer: Mapping[str, Any]) -> str | None:
    """`stop` or `length`, in the Responses API's words."""
    reason = mapping(answer.get("incomplete_details"), "incomplete_details").get("reason")
    return "length" if reason == "max_output_tokens" else "stop" if answer.get("status") == "completed" else None


def _choice(choice: Mapping[str, Any], layers: Layers, facts: Facts, reading: Reading) -> Record:
    logprobs = mapping(needed(choice, "logprobs"), "logprobs")
    if logprobs.get("content") is not None:
        content = listed(logprobs["content"], "logprobs.content")
        texts = _texts(_each(content, "token"), "token")
        values = floats(_each(content, "logprob"), "logprob")
        text = word(mapping(choice.get("message"), "message").get("content"), "message.content")
        tables = [_table(entry.get("top_logprobs")) for entry in content] if reading.likeliest else []
    else:
        texts = _texts(listed(needed(logprobs, "tokens"), "logprobs.tokens"), "logprobs.tokens")
        values = floats(needed(logprobs, "token_logprobs"), "logprobs.token_logprobs")
        text = word(choice.get("text"), "text")
        tables = listed(logprobs.get("top_logprobs"), "logprobs.top_logprobs") if reading.likeliest else []
    given = choice.get("token_ids")
    tokens = ids(given, "token_ids") if given is not None else _ids_of(texts, reading)
    prompt = next((p for p in (r.get("prompt_token_ids") for r in (choice, *layers)) if p is not None), None)
    numbers, words = facts
    return record_of(
        ids(listed(prompt, "prompt_token_ids"), "prompt_token_ids"),
        {
            "response_ids": tokens,
            "rollout_logprobs": _unsampled(values),
            "weight_versions": _version(layers, len(tokens)),
        },
        numbers,
        words | {"finish_reason": word(choice.get("finish_reason"), "finish_reason")},
        texts={
            "response_text": text,
            "prompt_text": word(layers[0].get("prompt_text"), "prompt_text"),
            "token_texts": tuple(texts) if len(texts) == len(tokens) else None,
        },
        likeliest=_likeliest(tables, len(tokens), _PREFIX),
    )


def _version(layers: Layers, count: int) -> Column | None:
    found = next((f for f in (find(layer, "weight_versions", {}) for layer in layers) if f is not None), None)
    return versions(found[1], count) if found else None


def _output(output: Mapping[str, Any], request: Mapping[str, Any], facts: Facts, reading: Reading) -> Record:
    tokens = ids(needed(output, "token_ids"), "token_ids")
    entries = [mapping(e, "logprobs") for e in listed(needed(output, "logprobs"), "logprobs")]
    if len(entries) != len(tokens):
        raise Unusable("lengths differ", f"logprobs has {len(entries)} entries, token_ids {len(tokens)}")
    sampled = []
    for token, entry in zip(tokens.tolist(), entries, strict=True):
        found = entry.get(str(token))
        # A dictionary of the likeliest tokens without the sampled one would score another token.
        if found is None:
            raise Unusable("sampled token not scored", f"logprobs has no entry for token {token}")
        sampled.append(found if isinstance(found, Mapping) else {"logprob": found})
    return record_of(
        ids(listed(request.get("prompt_token_ids"), "prompt_token_ids"), "prompt_token_ids"),
        {
            "response_ids": tokens,
            "rollout_logprobs": floats(_each(sampled, "logprob"), "logprob"),
        },
        facts[0],
        facts[1] | {"finish_reason": word(output.get("finish_reason"), "finish_reason")},
        texts={
            "response_text": word(output.get("text"), "text"),
            "prompt_text": word(request.get("prompt"), "prompt"),
            "token_texts": tuple(_texts([e.get("decoded_token") for e in sampled], "decoded_token")),
        },
        likeliest=_likeliest(entries, len(tokens), "") if reading.likeliest else None,
    )


def _table(entries: Any) -> dict[str, Any]:
    """What a chat completion says of the likeliest tokens of one place, by their names."""
    found = [mapping(entry, "top_logprobs") for entry in listed(entries, "top_logprobs")]
    return {str(entry.get("token")): entry.get("logprob") for entry in found}


def _likeliest(tables: list[Any], count: int, prefix: str) -> Likeliest | None:
    """The likeliest tokens, of every place as many as the place with the fewest has; `prefix` is before every id.

    None where a log names tokens by text, or reports none beside the sampled one. Servers report K tokens and the
    sampled one, if it is another: the least likely is left out then.
    """
    if not tables or not count:
        return None
    rows = [mapping(table, "top_logprobs") for table in tables]
    same_lengths({"top_logprobs": np.empty(len(rows))}, count, "the response")
    width = min(map(len, rows))
    names = [str(name) for row in rows for name in row]
    numbers = [digits(name.removeprefix(prefix)) if name.startswith(prefix) else None for name in names]
    if width < 2 or None in numbers:
        return None
    given = [value.get("logprob") if isinstance(value, Mapping) else value for row in rows for value in row.values()]
    values = _unsampled(floats(given, "top_logprobs"))
    if values is None or not (values <= ROUNDING).all():
        raise Unusable("impossible log-probability", "top_logprobs holds one that is missing or above 0")
    sizes = np.array(list(map(len, rows)))
    places = np.repeat(np.arange(count), sizes)
    order = np.lexsort((-values, places))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept = order[rank < width]
    return Likeliest(ids(numbers, "top_logprobs")[kept].reshape(count, width), values[kept].reshape(count, width))


def _each(entries: list[Any], key: str) -> list[Any]:
    """One value of every entry."""
    try:
        return [entry[key] for entry in entries]
    except (KeyError, TypeError, IndexError):
        raise Unusable("missing field", f"an entry of logprobs has no {key}") from None


def _texts(values: list[Any], name: str) -> list[str]:
    strange = set(map(type, values)) - {str, type(None)}
    if strange:
        raise Unusable("wrong type", f"{name} holds {strange.pop().__name__}, allowed is text")
    return [value or "" for value in values]


def _ids_of(texts: list[str], reading: Reading) -> Column:
    numbers = [digits(text.removeprefix(_PREFIX)) if text.startswith(_PREFIX) else None for text in texts]
    if None not in numbers:
        return ids(numbers, "tokens")
    reading.note(STAND_IN)
    return np.array([crc32(text.encode(errors="replace")) & 0xFFFFF for text in texts], np.int32)


def _unsampled(values: Column | None) -> Column | None:
    return None if values is None else np.where(values == np.float32(NEVER_SAMPLED), -np.inf, values).astype(np.float32)


SGLANG = Loader(
    name="sglang",
    title="SGLang /generate",
    files="*.jsonl, *.json of its answers, as they are or inside a record",
    gives="rollout log-probabilities, weight version; rewards, steps and groups beside an answer",
    matches=matches_sglang,
    read=read,
)
GYM = Loader(
    name="nemo_gym",
    title="NeMo-Gym rollouts",
    files="*rollouts*.jsonl",
    gives="rollout log-probabilities, turns, tool output, rewards, environment, group",
    matches=matches_gym,
    read=read,
)
LOADER = Loader(
    name="responses",
    title="OpenAI or vLLM answers",
    files="*.jsonl, *.json of chat completions, completions, batch outputs, the Responses API or vLLM RequestOutputs, "
    "as they are or inside a record",
    gives="rollout log-probabilities, token texts; rewards, steps and groups beside an answer; chunks are joined by id",
    matches=matches,
    read=read,
)

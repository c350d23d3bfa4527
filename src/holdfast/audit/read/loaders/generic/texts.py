"""Dumps of texts without token ids (verl's, TRL's, AReaL's, anybody's): a tokenizer makes ids from the text.

verl's `trainer.rollout_data_dir` has input, output, score and step, both texts without special tokens; TRL's
`log_completions` has step, prompt, completion, one column per reward function, and advantage; AReaL's
`rollout.dump_to_file` prompt, completion, reward, task_id and the weight version at the response's end, tail_version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.audit.read.columns import Chunk, Column
from holdfast.audit.read.loaders.generic.unknown import fields_of
from holdfast.audit.read.loaders.loader import Loader
from holdfast.audit.read.raw.compressed import head_of, unpacked
from holdfast.audit.read.raw.fields import LARGEST_ID, Unusable
from holdfast.audit.read.raw.jsonl import is_lines, read_jsonl, read_objects
from holdfast.audit.read.raw.names import ALIASES, facts_of, find, looked_for
from holdfast.audit.read.raw.records import Record, pack_records, record_of
from holdfast.audit.read.reading import Reading
from holdfast.errors import ConfigError
from holdfast.rollout.store import open_parquet

_ROWS = 256
_TRL = {"step", "prompt", "completion"}
FROM_TEXT = (
    "token ids were made by the tokenizer from the texts of the log, {rows:,} of them: what the engine sampled may "
    "have been other tokens of the same text. {joined:.1%} have other tokens where prompt and response meet if they "
    "are encoded as one, {bare:.0%} of the prompts hold no special token (as verl writes them) and {open:.0%} of the "
    "responses end without one; a model scores contexts then that the policy never had"
)
"""What a dump of texts cannot tell, measured."""


def texts_loader(columns: Mapping[str, str]) -> Loader:
    """The loader of rows with a prompt's and a response's text."""

    def matches(path: Path, head: bytes) -> bool:
        names = set(fields_of(path, head))
        there = {ours: columns.get(ours, "").split(".")[0] for ours in ("prompt_text", "response_text")}
        return all(there[ours] in names or bool(names & set(ALIASES[ours])) for ours in there)

    return Loader(
        name="texts",
        title="dumps of texts, with --tokenizer",
        files="*.jsonl, *.json, *.parquet with the texts of prompts and responses (verl, TRL, AReaL)",
        gives="rewards, advantages, lengths and texts; with --model the trainer's log-probabilities",
        matches=matches,
        read=read,
    )


def read(path: Path, reading: Reading) -> Iterator[Chunk]:
    """Chunks of a file. Raises ConfigError where no tokenizer was given."""
    if reading.codec is None:
        raise ConfigError(f"{path} holds texts: give the model's tokenizer with --tokenizer DIR")

    def decode(row: Mapping[str, Any]) -> Iterator[Record]:
        return iter([_record(row, reading)])

    if head_of(path, 4) == b"PAR1":
        return pack_records(_from_parquet(path, reading))
    return read_jsonl(path, reading, decode) if is_lines(path) else read_objects(path, reading, decode)


def note_texts(reading: Reading) -> None:
    """Say what ids made from text cannot tell, if any were."""
    rows = reading.texts["rows"]
    if rows:
        shares = {name: reading.texts[name] / rows for name in ("joined", "bare", "open")}
        reading.note(FROM_TEXT.format(rows=rows, **shares))


def _from_parquet(path: Path, reading: Reading) -> Iterator[Record]:
    number = 0
    with open_parquet(unpacked(path)) as file:
        share = path.stat().st_size / max(1, file.metadata.num_rows)
        for batch in file.iter_batches(batch_size=_ROWS):
            for row in batch.to_pylist():
                try:
                    yield _record(row, reading)
                except Unusable as problem:
                    reading.reject(path, number, problem.kind, f"row {number}: {problem.detail}")
                number += 1
            reading.advance(round(share * batch.num_rows))


def _record(row: Mapping[str, Any], reading: Reading) -> Record:
    codec = reading.codec
    assert codec is not None
    prompt, response = (_text(row, name, reading) for name in ("prompt_text", "response_text"))
    before, sampled, whole = codec.encode([prompt, response, prompt + response])
    if not sampled:
        raise Unusable("no sampled token", "the response's text is empty")
    reading.texts.update(
        rows=1,
        joined=int([*before, *sampled] != whole),
        bare=int(not codec.special.intersection(before)),
        open=int(sampled[-1] not in codec.special),
    )
    numbers, words = facts_of([row], reading)
    columns: dict[str, Column | None] = {"response_ids": np.array(sampled, np.int32)}
    advantage = find(row, "advantages", reading.columns)
    if advantage is not None and isinstance(advantage[1], (int, float)):
        columns["advantages"] = np.full(len(sampled), advantage[1], np.float32)
    if numbers["reward"] is None and set(row) >= _TRL:
        numbers["reward"] = _sum_of_rewards(row)
    version = row.get("tail_version")
    if isinstance(version, int) and 0 <= version <= LARGEST_ID:
        columns["weight_versions"] = np.full(len(sampled), version, np.int32)
        numbers["step"] = version if numbers["step"] is None else numbers["step"]
    texts = {"prompt_text": prompt, "response_text": response}
    return record_of(np.array(before, np.int32), columns, numbers, words, texts=texts)


def _text(row: Mapping[str, Any], ours: str, reading: Reading) -> str:
    found = find(row, ours, reading.columns)
    if found is None:
        raise Unusable("missing field", f"{ours}: looked for {looked_for(ours, reading.columns)}; --map {ours}=NAME")
    if not isinstance(found[1], str):
        raise Unusable("wrong type", f"{found[0]} is a {type(found[1]).__name__}, no text")
    return found[1]


def _sum_of_rewards(row: Mapping[str, Any]) -> float | None:
    """TRL's total of a row at equal weights: its columns are named after the reward functions."""
    known = {"step", "advantage"}
    given = [v for k, v in row.items() if k not in known and isinstance(v, (int, float)) and not isinstance(v, bool)]
    return float(sum(given)) if given else None

"""One row under anyone's names as a record: prompt and response told apart, every column brought to the response.

A column may cover the response, the whole sequence, or the whole sequence but its first token, as log-probabilities do
that a forward pass gave: its last entries are the response's then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from holdfast.audit.read.columns import Column
from holdfast.audit.read.loaders.loader import ROLLOUT_ONLY
from holdfast.audit.read.raw.fields import Unusable, flags, floats, ids, whole
from holdfast.audit.read.raw.names import ALIASES, facts_of, find, looked_for, versions
from holdfast.audit.read.raw.records import Record, record_of, turns_of
from holdfast.audit.read.reading import Reading
from holdfast.types import BOUNDS, possible_bounds

DEEPEST = 4
TOKEN_IDS = ("response_ids", "token_ids")
_FLOATS = ("entropy", "advantages", "kl_exact", *BOUNDS)
TRAINER_ONLY = (
    "this log has the trainer's log-probabilities only: drift cannot be measured without the engine's (looked for {}; "
    "--map rollout_logprobs=NAME)"
)
NEITHER = (
    "no log-probabilities were found. The engine's are looked for as {}; the trainer's as {}; name yours with "
    "--map rollout_logprobs=NAME --map trainer_logprobs=NAME"
)
UNNAMED = "{} was taken for the {} log-probabilities; if it holds the other's: --map {}={}"
NO_PROMPT = "no prompt ids were found (looked for {}): answers of one prompt cannot be told from others"

Row = tuple[Mapping[str, Any], tuple[Mapping[str, Any], ...]]


def rows_in(record: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[Row]:
    """Every row in a record with the records around it, innermost first: itself, or those in its objects and lists."""
    yield from _walk(record, (), columns, DEEPEST)


def _walk(value: Any, around: tuple[Mapping[str, Any], ...], columns: Mapping[str, str], left: int) -> Iterator[Row]:
    if isinstance(value, Mapping):
        layers = (value, *around)
        if any(_is_column(find(value, name, columns)) for name in TOKEN_IDS):
            yield value, layers
        elif left:
            for inner in value.values():
                if isinstance(inner, (dict, list)):
                    yield from _walk(inner, layers, columns, left - 1)
    elif isinstance(value, list) and left and value and isinstance(value[0], dict):
        for inner in value:
            yield from _walk(inner, around, columns, left - 1)


def _is_column(found: tuple[str, Any] | None) -> bool:
    value = found[1] if found else None
    if isinstance(value, list):
        return not value or isinstance(value[0], int)
    return isinstance(value, np.ndarray) and value.ndim == 1


def no_rows(record: Mapping[str, Any], columns: Mapping[str, str]) -> Unusable:
    """Why a record holds no row: the names that were looked for, and those that there are."""
    there = ", ".join(sorted(map(str, record))[:30]) or "none"
    looked = looked_for("response_ids", columns)
    return Unusable(
        "missing field",
        f"token ids of the response: looked for {looked}; the fields are {there}; --map response_ids=NAME",
    )


@dataclass(frozen=True)
class _Place:
    """Where the response lies: `total` entries of a whole sequence, the response's are [start, total)."""

    total: int
    start: int
    kept: Column
    """[total - start] which of them are no padding."""

    def of(self, column: Column | None, name: str) -> Column | None:
        """The response's entries of a column, without padding."""
        if column is None:
            return None
        width = self.total - self.start
        if len(column) not in (width, self.total, self.total - 1) or len(column) < width:
            detail = f"{name} has {len(column)} entries, the response {width}, the whole sequence {self.total}"
            raise Unusable("lengths differ", detail)
        return column[len(column) - width :][self.kept]


def record_of_row(
    row: Mapping[str, Any], layers: Sequence[Mapping[str, Any]], reading: Reading, pad: int | None = None
) -> Record:
    """The record of one row; `pad` is the id that fills up prompts and responses of equal width.

    Raises Unusable where the response cannot be told from the prompt, or a column does not fit.
    """

    def get(ours: str) -> tuple[str, Any]:
        return find(row, ours, reading.columns) or (ours, None)

    own = flags(get("response_mask")[1], get("response_mask")[0])
    real = flags(get("attention_mask")[1], "attention_mask")
    name, value = get("response_ids")
    if value is not None:
        response = ids(value, name)
        prompt = _prompt(get, response, reading)
        place = _beside(prompt, response, own, real, _length(get("response_length")), pad)
        prompt = _unpadded(prompt, real[: len(prompt)] if real is not None and len(real) == place.total else None, pad)
        tokens = response[place.kept]
    else:
        prompt, tokens, place = _within(get, own, real, pad)
    columns = {ours: place.of(_numbers(get(ours), len(tokens), place), get(ours)[0]) for ours in _FLOATS}
    columns |= _logprobs(get, place, reading)
    mask = place.of(own, get("response_mask")[0])
    sampled = np.ones(len(tokens), bool) if mask is None else mask
    turns = get("turn_ids")
    by_mask = None if mask is None else turns_of(mask)
    columns |= {
        "response_ids": tokens,
        "response_mask": mask,
        "trust_mask": place.of(flags(get("trust_mask")[1], "trust_mask"), "trust_mask"),
        "turn_ids": by_mask if turns[1] is None else place.of(ids(turns[1], turns[0]), turns[0]),
        "weight_versions": versions(get("weight_versions")[1], len(tokens)),
    }
    counts = {ours: get(ours) for ours in ("experts_changed", "support_size")}
    columns |= {ours: place.of(ids(v, name), name) for ours, (name, v) in counts.items() if v is not None}
    _check_bounds(columns, sampled)
    numbers, words = facts_of(layers, reading)
    return record_of(
        prompt, columns, numbers, words, texts={n: _text(get(n)[1]) for n in ("prompt_text", "response_text")}
    )


def _prompt(get: Any, response: Column, reading: Reading) -> Column:
    name, value = get("prompt_ids")
    if value is not None and _is_column((name, value)):
        return ids(value, name)
    name, value = get("token_ids")
    if value is None or not _is_column((name, value)):
        reading.note(NO_PROMPT.format(looked_for("prompt_ids", reading.columns)))
        return ids([], "prompt_ids")
    sequence = ids(value, name)
    ends = len(sequence) >= len(response) and bool((sequence[len(sequence) - len(response) :] == response).all())
    return sequence[: len(sequence) - len(response)] if ends else sequence


def _beside(
    prompt: Column, response: Column, own: Column | None, real: Column | None, length: int | None, pad: int | None
) -> _Place:
    """The response stands alone; an attention mask, a length or, if it is padded, its own mask say how long it is."""
    width, total = len(response), len(prompt) + len(response)
    kept = np.ones(width, bool)
    if real is not None and len(real) in (width, total):
        kept = real[len(real) - width :]
    elif length is not None and 0 <= length <= width:
        kept = np.arange(width) < length
    elif pad is not None and own is not None and len(own) in (width, total):
        last = np.flatnonzero(own[len(own) - width :])
        kept = np.arange(width) <= (last[-1] if len(last) else -1)
    return _Place(total, len(prompt), kept)


def _within(get: Any, own: Column | None, real: Column | None, pad: int | None) -> tuple[Column, Column, _Place]:
    """Prompt and response of a sequence that is logged whole, from a mask or a length."""
    name, value = get("token_ids")
    sequence = ids(value, name)
    total = len(sequence)
    if real is None:
        real = np.ones(total, bool)
    elif len(real) != total:
        raise Unusable("lengths differ", f"attention_mask has {len(real)} entries, {name} {total}")
    length, before = _length(get("response_length")), _length(get("prompt_length"))
    if own is not None and total - 1 <= len(own) <= total:
        full = np.concatenate([np.zeros(total - len(own), bool), own])
        if not full.any():
            raise Unusable("no sampled token", "the mask leaves no token that the policy sampled")
        start = int(full.argmax())
    elif own is not None:
        start = total - len(own)
    elif before is not None:
        start = int(real.argmax()) + before
    elif length is not None:
        start = total - length
    else:
        looked = ", ".join((*ALIASES["response_mask"], *ALIASES["prompt_length"]))
        raise Unusable("missing field", f"where the response begins in {name}: looked for {looked}")
    if not 0 <= start <= total:
        raise Unusable("lengths differ", f"the response would begin at {start}, {name} has {total} entries")
    if pad is not None and own is not None and real.all():
        last = np.flatnonzero(own)
        there = np.arange(total) <= total - len(own) + (last[-1] if len(last) else -1)
    else:
        there = real
    kept = there[start:]
    return sequence[:start][there[:start]], sequence[start:][kept], _Place(total, start, kept)


def _unpadded(prompt: Column, real: Column | None, pad: int | None) -> Column:
    if real is not None:
        return prompt[real]
    if pad is None or not len(prompt):
        return prompt
    there = np.flatnonzero(prompt != pad)
    return prompt[there[0] : there[-1] + 1] if len(there) else prompt[:0]


def _numbers(found: tuple[str, Any], length: int, place: _Place) -> Column | None:
    name, value = found
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, (int, float)):
        value = [value]
    column = floats(value, name)
    if column is not None and len(column) == 1 and len(place.kept) != 1:
        return np.full(len(place.kept), column[0])
    return column


def _logprobs(get: Any, place: _Place, reading: Reading) -> dict[str, Column | None]:
    """Both sides; a name that tells no side is the one that is missing, the engine's where both are."""
    given = {side: get(side) for side in ("rollout_logprobs", "trainer_logprobs")}
    unnamed = get("logprobs")
    if unnamed[1] is not None:
        lacking = next((side for side, found in given.items() if found[1] is None), None)
        if lacking is not None and unnamed[0] not in reading.columns.values():
            other = next(side for side in given if side != lacking)
            whose = "engine's" if lacking == "rollout_logprobs" else "trainer's"
            reading.note(UNNAMED.format(unnamed[0], whose, other, unnamed[0]))
            given[lacking] = unnamed
    columns = {side: place.of(floats(found[1], found[0]), found[0]) for side, found in given.items()}
    engine, trainer = (looked_for(side, reading.columns) for side in given)
    if columns["rollout_logprobs"] is None and columns["trainer_logprobs"] is None:
        reading.note(NEITHER.format(engine, trainer))
    elif columns["trainer_logprobs"] is None:
        reading.note(ROLLOUT_ONLY)
    elif columns["rollout_logprobs"] is None:
        reading.note(TRAINER_ONLY.format(engine))
    return columns


def _check_bounds(columns: Mapping[str, Column | None], sampled: Column) -> None:
    given = {name: column for name in BOUNDS if (column := columns.get(name)) is not None}
    if not given:
        return
    if len(given) < len(BOUNDS):
        raise Unusable("missing field", f"{', '.join(BOUNDS)} come together")
    for name, possible in possible_bounds(given).items():
        wrong = np.flatnonzero(sampled & ~possible)
        if len(wrong):
            detail = f"{name} is {given[name][wrong[0]]:g} at token {wrong[0]}, allowed are {BOUNDS[name]}"
            raise Unusable("number out of range", detail)


def _length(found: tuple[str, Any]) -> int | None:
    value = found[1]
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0].item()
    return whole(value, found[0])


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None

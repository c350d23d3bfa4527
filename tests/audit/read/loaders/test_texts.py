"""Dumps of texts with a tokenizer: verl's, TRL's and AReaL's rows, what is left out, and the risk in numbers."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from holdfast.audit.read.columns import as_rollouts
from holdfast.audit.read.loaders.generic.texts import note_texts
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.source import find_files, read_files
from holdfast.audit.simulate.letters import PAIRS, SINGLE, Letters
from holdfast.errors import DataError


class Ended(Letters):
    """The same vocabulary, whose last single letter ends a text."""

    special = frozenset({SINGLE - 1})


END = Letters().decode([[SINGLE - 1]])[0]
Q = Letters().decode([[PAIRS]])[0]


def load(path, codec=None, columns=None):
    reading = Reading(codec=codec or Ended(), columns=columns or {})
    files = find_files(path, note=reading.note, columns=reading.columns, texts=True)
    return [r for _, chunk in read_files(files, reading) for r in as_rollouts(chunk)], reading


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_verl(tmp_path):
    rows = [{"input": "AB", "output": "BC" + END, "gts": "4", "score": s / 2, "step": 3} for s in range(2)]
    rollouts, reading = load(write(tmp_path / "3.jsonl", *rows))
    assert [r.reward for r in rollouts] == [0.0, 0.5]
    assert rollouts[0].prompt_ids == (0, 1)
    assert rollouts[0].response_ids == (1, 2, SINGLE - 1)
    assert (rollouts[0].step, rollouts[0].response_text) == (3, "BC" + END)
    assert rollouts[0].rollout_logprobs is None
    assert reading.texts == {"rows": 2, "joined": 0, "bare": 2, "open": 0}


def test_trl_sums_its_reward_functions_and_keeps_advantages(tmp_path):
    row = {"step": 1, "prompt": "AB", "completion": "BC", "accuracy": 1.0, "format": 0.5, "advantage": -0.25}
    pq.write_table(pa.Table.from_pylist([row, row | {"completion": ""}]), tmp_path / "completions_00001.parquet")
    (rollout,), reading = load(tmp_path)
    assert rollout.reward == 1.5
    assert rollout.advantages == (-0.25, -0.25)
    assert reading.rejected == {"no sampled token": 1}
    assert reading.bytes_read == pytest.approx((tmp_path / "completions_00001.parquet").stat().st_size, abs=1)


def test_areal_names_versions(tmp_path):
    row = {"task_id": 7, "sample_idx": 0, "seqlen": 4, "prompt_len": 2, "head_version": 4, "tail_version": 5}
    rollouts, _ = load(write(tmp_path / "7.jsonl", row | {"reward": 1.0, "prompt": "AB", "completion": "BC"}))
    (rollout,) = rollouts
    assert (rollout.group_id, rollout.step, rollout.weight_versions) == (7, 5, (5, 5))


def test_own_names_and_wrong_types(tmp_path):
    path = write(tmp_path / "a.jsonl", {"q": "AB", "a": "BC"}, {"q": "AB", "a": 3}, {"q": "AB"})
    (rollout,), reading = load(path, columns={"prompt_text": "q", "response_text": "a"})
    assert rollout.response_ids == (1, 2)
    assert reading.rejected == {"wrong type": 1, "missing field": 1}
    assert "a is a int, no text" in reading.examples[0].reason


def test_the_risk_is_measured_and_said(tmp_path):
    """Of four rows one merges where prompt and response meet (A, then Q), one prompt has an end, two responses do."""
    rows = [("BA", Q), ("AB", "BC" + END), ("A" + END, "BC" + END), ("AB", "BC")]
    _, reading = load(write(tmp_path / "1.jsonl", *({"prompt": p, "response": r} for p, r in rows)))
    assert reading.texts == {"rows": 4, "joined": 1, "bare": 3, "open": 2}
    note_texts(reading)
    (said,) = reading.notes
    assert "4 of them" in said
    assert "25.0% have other tokens where prompt and response meet" in said
    assert "75% of the prompts hold no special token" in said
    assert "50% of the responses end without one" in said


def test_texts_are_read_only_where_no_ids_are(tmp_path):
    write(tmp_path / "texts.jsonl", {"prompt": "AB", "response": "BC"})
    write(tmp_path / "ids.jsonl", {"prompt_ids": [1], "response_ids": [2, 3]})
    rollouts, reading = load(tmp_path)
    assert [r.response_ids for r in rollouts] == [(2, 3)]
    assert not reading.texts


def test_without_a_tokenizer_the_dump_is_refused_with_what_to_give(tmp_path):
    row = {"prompt": "AB", "completion": "BC", "tail_version": 5}
    for fields, says in (({"input": "q", "output": "a", "score": 0.0, "step": 1}, "verl"), (row, "AReaL")):
        with pytest.raises(DataError, match=rf"{says}'s .*--tokenizer DIR"):
            find_files(write(tmp_path / "1.jsonl", fields))

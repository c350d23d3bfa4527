"""Files that are cut, wrong or hostile: bad records are counted and named, good ones kept."""

import json
import os
import pickle
import re

import pytest
import torch

import dumps
from dumps import load
from holdfast.audit.read.loaders import formats_table
from holdfast.audit.read.raw import jsonl
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.source import detect, find_files
from holdfast.errors import DataError

GOOD = dumps.sample_rollouts(count=3)


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


def with_line(tmp_path, line, write=dumps.open_instruct):
    """A file with a strange line between good ones; what was read of it."""
    path = write(tmp_path, GOOD)
    first, *rest = lines_of(path)
    path.write_bytes(b"".join([first, line, *rest]))
    return load(path)


def changed(tmp_path, write=dumps.open_instruct, **fields):
    """A file whose second record has other values; what was read of it."""
    path = write(tmp_path, GOOD)
    lines = lines_of(path)
    lines[1] = json.dumps({**json.loads(lines[1]), **fields}).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    return load(path)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b'{"step": 1, "prompt_tokens": [1, 2\n', "cut off in mid-record"),
        (b'{"step": "caf\xe9"}\n', "invalid UTF-8"),
        (b"[1, 2]\n", "not an object"),
        (b"7\n", "not an object"),
        (b"{'step': 1}\n", "not JSON"),
        (b"{}\n", "missing field"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"\n", "not JSON"),
    ],
)
def test_a_bad_line_is_left_out_and_named(tmp_path, line, kind):
    got, reading = with_line(tmp_path, line)
    assert len(got) == 3
    assert reading.rejected == {kind: 1}
    (example,) = reading.examples
    assert example.record == 1
    assert example.reason.startswith(f"{kind}: line 2:")


@pytest.mark.parametrize("line", [b"\n", b"  \r\n", b""])
def test_empty_lines_are_no_records(tmp_path, line):
    got, reading = with_line(tmp_path, line)
    assert len(got) == 3
    assert reading.rejected == {}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"response_tokens": [1, 2, 3]}, r"rollout_logprobs has \d+ entries, response_ids 3"),
        ({"response_tokens": "abc"}, "response_tokens is str 'abc', allowed is a list"),
        (
            {"response_tokens": [1, 2.5]},
            r"wrong type: line 2: response_tokens holds float 2\.5, allowed are whole numbers",
        ),
        ({"response_tokens": [-1]}, "response_tokens has -1: ids go from 0 to 2147483647"),
        ({"response_tokens": [2**31]}, "token id out of range"),
        ({"response_tokens": [2**80]}, "response_tokens holds float .*, allowed are whole numbers"),
        ({"logprobs": ["-1.0"]}, "logprobs holds str '-1.0', allowed are numbers and null"),
        ({"logprobs": {"a": 1}}, "logprobs is dict, allowed is a list"),
        ({"reward": "high"}, "reward is str 'high', allowed is a number"),
        ({"step": 1.5}, "step is float 1.5, allowed is a whole number"),
        ({"step": 2**70}, "step is float .*, allowed is a whole number"),
        ({"finish_reason": 7}, "finish_reason is int 7, allowed is text"),
        ({"request_info": [1]}, "request_info is list, allowed is an object"),
    ],
)
def test_a_wrong_field_names_itself_and_what_is_allowed(tmp_path, fields, reason):
    got, reading = changed(tmp_path, **fields)
    assert len(got) == 2
    assert reading.rejected.total() == 1
    assert re.search(reason, reading.examples[0].reason), reading.examples[0].reason


def test_numbers_beyond_float32_become_infinite_without_a_warning(tmp_path):
    length = len(GOOD[1].response_ids)
    got, reading = changed(tmp_path, logprobs=[-1e300] * length, reward=1e300)
    assert reading.rejected == {}
    assert set(got[1].rollout_logprobs) == {float("-inf")}
    assert got[1].reward == float("inf")


def test_nan_as_python_writes_it_is_kept_for_the_checks(tmp_path):
    path = dumps.open_instruct(tmp_path, GOOD)
    lines = lines_of(path)
    record = json.loads(lines[1])
    record["logprobs"][0], record["logprobs"][1] = float("nan"), float("-inf")
    lines[1] = json.dumps(record).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    got, reading = load(path)
    assert reading.rejected == {}
    assert str(got[1].rollout_logprobs[0]) == "nan"
    assert got[1].rollout_logprobs[1] == float("-inf")
    assert got[1].response_mask[0] is True


def test_a_line_too_long_for_memory_is_skipped(tmp_path, monkeypatch):
    path = dumps.open_instruct(tmp_path, GOOD)
    longest = max(len(line) for line in lines_of(path))
    monkeypatch.setattr(jsonl, "LONGEST_LINE", longest + 1)
    first, *rest = lines_of(path)
    path.write_bytes(b"".join([first, b"[" + b"0," * (3 * longest) + b"0]\n", *rest]))
    got, reading = load(path)
    assert len(got) == 3
    assert reading.rejected == {"line too long": 1}
    assert f"line 2 has {6 * longest + 4:,} bytes" in reading.examples[0].reason
    assert reading.bytes_read == path.stat().st_size


def test_a_file_cut_in_mid_record_keeps_what_came_before(tmp_path):
    path = dumps.nemo_rl(tmp_path, GOOD)
    path.write_bytes(path.read_bytes()[:-300])
    got, reading = load(path)
    assert len(got) == 2
    assert reading.rejected == {"cut off in mid-record": 1}


@pytest.mark.parametrize("write", [dumps.slime_train, dumps.slime_rollout, dumps.miles_train], ids=lambda w: w.__name__)
def test_a_cut_torch_file_is_named(tmp_path, write):
    path = write(tmp_path, GOOD)
    path.write_bytes(path.read_bytes()[:-200])
    got, reading = load(path)
    assert got == []
    assert reading.rejected == {"unreadable file": 1}
    assert "is not a complete file of torch.save" in reading.examples[0].reason


class Harm:
    """Code that a pickle would run."""

    def __reduce__(self):
        return (os.mkdir, ("harm",))


def test_a_torch_file_with_code_in_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"rollout_id": 1, "samples": [Harm()]}, tmp_path / "1.pt")
    got, reading = load(tmp_path / "1.pt")
    assert got == []
    assert not (tmp_path / "harm").exists()
    assert "--allow-pickle" in reading.examples[0].reason
    got, reading = load(tmp_path / "1.pt", allow_pickle=True)
    assert (tmp_path / "harm").exists()
    assert reading.rejected == {"wrong type": 1}


def test_a_pickle_is_refused_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "batch.pkl").write_bytes(pickle.dumps(Harm()))
    got, reading = load(tmp_path)
    assert got == []
    assert not (tmp_path / "harm").exists()
    assert "runs whatever code is in it" in reading.examples[0].reason


def test_a_file_of_an_unknown_format_says_what_was_looked_for(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"loss": 1.0}\n')
    with pytest.raises(DataError, match=r"none of 1 files .* train_data_step\*\.jsonl"):
        find_files(tmp_path)


def test_one_json_value_too_large_to_stream_says_how_to_turn_it_into_lines(tmp_path, monkeypatch):
    path = dumps.chat(tmp_path, GOOD)
    answers = [json.loads(line) for line in lines_of(path)]
    whole = tmp_path / "answers.json"
    whole.write_text(json.dumps(answers, indent=1))
    path.unlink()
    assert len(load(whole)[0]) == 3
    monkeypatch.setattr(jsonl, "LARGEST_FILE", 100)
    got, reading = load(whole)
    assert got == []
    assert "jq -c '.[]' answers.json > answers.jsonl" in reading.examples[0].reason


def test_no_more_than_one_chunk_is_held(tmp_path):
    """Chunks come while the file is read, not at its end."""
    path = dumps.open_instruct(tmp_path, GOOD)
    path.write_bytes(path.read_bytes() * 2000)
    reading = Reading()
    first = next(detect(path).read(path, reading))
    assert 0 < first.token_count < 2**18 + 1000
    assert reading.bytes_read < path.stat().st_size


def test_the_list_of_formats_names_every_source():
    table = formats_table()
    assert table.startswith("Holdfast\n")
    for word in ("NeMo-RL", "prime-rl", "verifiers", "slime", "miles", "open-instruct", "vLLM", "SkyRL"):
        assert word in table

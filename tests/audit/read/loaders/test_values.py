"""What each field of slime's, open-instruct's and SkyRL's files and of servers' answers becomes."""

import json
import math
import pickle

import numpy as np
import pytest
import torch

import dumps
from holdfast.audit.read.loaders import LOADERS
from holdfast.audit.read.raw import jsonl
from holdfast.audit.read.raw.fields import Unusable
from holdfast.audit.read.reading import Reading
from holdfast.errors import DataError

GOOD = dumps.sample_rollouts(count=3)


@pytest.mark.parametrize("write", dumps.WRITERS, ids=lambda write: write.__name__)
def test_no_two_loaders_claim_a_file(tmp_path, write):
    path = write(tmp_path, GOOD)
    head = path.read_bytes()[: 1 << 16]
    claims = [loader.name for loader in LOADERS if loader.matches(path, head)]
    assert LOADERS[-1].name == "generic"  # it takes what no other does
    assert claims == ["generic"] if write is dumps.generic else len([n for n in claims if n != "generic"]) == 1


@pytest.mark.parametrize("record", [{"choices": [{"text": "a"}]}, {"prompt_tokens": [1]}], ids=str)
def test_what_only_looks_like_a_log_is_left_alone(tmp_path, record):
    (tmp_path / "log.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(DataError, match="none of 1 files"):
        dumps.load(tmp_path / "log.jsonl")


def slime(tmp_path, write=dumps.slime_rollout, top=None, **fields):
    """The first of slime's samples with other values, in a dump with other values; what was read of it."""
    path = write(tmp_path, GOOD)
    payload = torch.load(path, weights_only=True)
    torch.save({**payload, **(top or {}), "samples": [{**payload["samples"][0], **fields}]}, path)
    return dumps.load(path)


@pytest.mark.parametrize(
    ("top", "words"),
    [
        ({"format_version": 3}, "has format_version 3, this version of Holdfast reads up to 2"),
        ({"format_version": "2"}, "it is no dump of slime"),
        ({"samples": {}}, "it is no dump of slime"),
    ],
)
def test_slime_files_of_another_kind_are_named(tmp_path, top, words):
    path = dumps.slime_rollout(tmp_path, GOOD)
    torch.save({**torch.load(path, weights_only=True), **top}, path)
    got, reading = dumps.load(path)
    assert got == [] and words in reading.examples[0].reason


@pytest.mark.parametrize("length", [-1, 1000, None])
def test_slime_lengths_that_cannot_be(tmp_path, length):
    got, reading = slime(tmp_path, response_length=length)
    assert got == [] and reading.rejected == {"lengths differ": 1}
    assert f"response_length is {length}, tokens has" in reading.examples[0].reason


def test_slime_fields_of_a_rollout_dump(tmp_path):
    (got,), _ = slime(tmp_path, index=9, group_index=5, source_names="sums", remove_sample=True, loss_mask=None)
    assert (got.sequence_id, got.group_id, got.environment, got.mask_reason) == (9, 5, "sums", "remove_sample")
    assert (got.prompt_text, got.response_text) == ("what?", "this")
    assert all(got.response_mask)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"status": "completed"}, "stop"),
        ({"status": "truncated"}, "length"),
        ({"status": "aborted"}, "abort"),
        ({"status": "failed"}, "failed"),
        ({"status": None}, None),
        ({"truncated": 0, "status": "truncated"}, "stop"),
        ({"truncated": 1}, "length"),
    ],
)
def test_slime_ends(tmp_path, fields, reason):
    (got,), _ = slime(tmp_path, **fields)
    assert got.finish_reason == reason


@pytest.mark.parametrize(("place", "reward"), [(0, 7.0), (1, 8.0), (2, None), (-1, None)])
def test_slime_rewards_are_found_by_the_sample_s_place(tmp_path, place, reward):
    """`rewards` of a train dump are normalised, so without a place there is none."""
    (got,), _ = slime(tmp_path, dumps.slime_train, {"raw_reward": [7.0, 8.0]}, rollout_position=place)
    assert got.reward == reward


@pytest.mark.parametrize(
    ("versions", "expected"),
    [(["7", "7", "7"], (7, 7)), (["7", "8"], None), (["7", None], None), ("7", None)],
)
def test_slime_versions_without_turns(tmp_path, versions, expected):
    """One turn of two tokens: one version, however often it was reported."""
    fields = {"tokens": [1, 2, 3], "response_length": 2, "loss_mask": [1, 1], "rollout_log_probs": [-1.0, -1.0]}
    (got,), _ = slime(tmp_path, weight_versions=versions, **fields)
    assert got.weight_versions == expected


def test_slime_responses_without_a_token(tmp_path):
    fields = {"tokens": [1, 2], "response_length": 0, "loss_mask": [], "rollout_log_probs": []}
    got, reading = slime(tmp_path, weight_versions=["1", "2"], **fields)
    assert [r.response_ids for r in got] == [()] or reading.rejected.total() == 1


def open_instruct(tmp_path, **fields):
    """One record of open-instruct with other values; what was read of it."""
    record = json.loads(dumps.open_instruct(tmp_path, GOOD[:1]).read_text())
    record |= {"response_tokens": [5, 6, 7], "logprobs": [-1.0, 0.0, -2.0], "request_info": {"num_calls": 0}}
    (tmp_path / "run_rollouts_000000.jsonl").write_text(json.dumps(record | fields) + "\n")
    return dumps.load(tmp_path)


@pytest.mark.parametrize(
    ("fields", "mask", "turns"),
    [
        ({}, (True, True, True), None),
        ({"request_info": None}, (True, True, True), None),
        ({"request_info": {"num_calls": 1}}, (True, False, True), (0, 0, 1)),
        ({"logprobs": [-1.0, float("nan"), -2.0]}, (True, True, True), None),
        ({"response_tokens": [5], "logprobs": [float("nan")]}, (False,), None),
    ],
)
def test_open_instruct_s_tool_output_is_known_by_its_zeros(tmp_path, fields, mask, turns):
    (got,), reading = open_instruct(tmp_path, **fields)
    assert got.response_mask == mask
    assert got.turn_ids == turns
    assert any("saves no mask" in note for note in reading.notes) == (turns is not None)


@pytest.mark.parametrize(
    ("fields", "advantages", "environment"),
    [
        ({"advantage": 0.0, "dataset": "sums"}, (0.0, 0.0, 0.0), "sums"),
        ({"advantage": None, "dataset": ["sums", "more"]}, None, None),
    ],
)
def test_open_instruct_s_advantages_and_data_sets(tmp_path, fields, advantages, environment):
    (got,), _ = open_instruct(tmp_path, **fields)
    assert got.advantages == advantages and got.environment == environment


def answers(tmp_path, *values, name="answers.jsonl"):
    (tmp_path / name).write_text("".join(json.dumps(value) + "\n" for value in values))
    return dumps.load(tmp_path / name)


def choice(**fields):
    """A completion of two tokens, under other values."""
    whole = {"logprobs": {"tokens": ["a", "b"], "token_logprobs": [-1.0, -9999.0]}, "text": "ab"}
    return {"choices": [{**whole, "finish_reason": "stop", **fields}]}


def test_the_prompt_is_the_choice_s_or_the_answer_s(tmp_path):
    shared = {"prompt_token_ids": [1], "prompt_text": "p"}
    own, both, none = choice(prompt_token_ids=[2]), choice(prompt_token_ids=[3]) | shared, choice() | shared
    got, _ = answers(tmp_path, own, both, none)
    assert [r.prompt_ids for r in got] == [(2,), (3,), (1,)]
    assert [r.prompt_text for r in got] == [None, "p", "p"]


def test_a_response_without_tokens_needs_no_stand_ins(tmp_path):
    (got,), reading = answers(tmp_path, choice(logprobs={"tokens": [], "token_logprobs": []}))
    assert got.response_ids == () and not any("stand-ins" in note for note in reading.notes)


def test_completions_say_minus_infinity_and_their_texts(tmp_path):
    got, reading = answers(tmp_path, choice(), choice(token_ids=[5, 6]), choice(token_ids=[5, 6, 7]))
    assert [r.rollout_logprobs for r in got] == [(-1.0, -np.inf)] * 2
    assert [r.token_texts for r in got] == [("a", "b")] * 2 and got[1].response_ids == (5, 6)
    assert reading.rejected == {"lengths differ": 1}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"choices": []}, "missing field"),
        (choice(logprobs={"content": [{"token": "a"}]}), "missing field"),
        (choice(logprobs={"content": ["a"]}), "missing field"),
        (choice(logprobs={"tokens": [1], "token_logprobs": [-1.0]}), "wrong type"),
        ({"outputs": [{"token_ids": [1, 2], "logprobs": [{"1": -1.0}]}]}, "lengths differ"),
    ],
)
def test_answers_that_cannot_be_read(tmp_path, value, kind):
    got, reading = answers(tmp_path, choice(), value)
    assert len(got) == 1 and reading.rejected == {kind: 1}


def test_plain_numbers_and_null_texts_of_request_outputs(tmp_path):
    output = {"token_ids": [9], "logprobs": [{"9": -3.0}], "finish_reason": "length"}
    (got,), reading = answers(tmp_path, {"prompt": "p", "prompt_token_ids": [1], "outputs": [output]})
    assert (got.rollout_logprobs, got.token_texts, got.prompt_text) == ((-3.0,), ("",), "p")
    assert any("drift cannot be measured" in note for note in reading.notes)


def test_a_broken_first_line_is_judged_by_the_file_s_name(tmp_path):
    lines = '{"choices": [{"logprobs"\n' + json.dumps(choice()) + "\n"
    for name, kinds in {"a.jsonl": ["cut off in mid-record"], "a.json": ["unreadable file"]}.items():
        (tmp_path / name).write_text(lines)
        got, reading = dumps.load(tmp_path / name)
        assert list(reading.rejected) == kinds and len(got) == (name == "a.jsonl")


def test_one_indented_answer_or_a_list_of_them_in_a_file(tmp_path):
    path = tmp_path / "a.json"
    for value, count in ((choice(), 1), ([choice(), choice()], 2)):
        path.write_text(json.dumps(value, indent=1))
        got, reading = dumps.load(path)
        assert len(got) == count and reading.bytes_read == path.stat().st_size
    path.write_text(json.dumps([choice(), {"choices": []}], indent=1))
    assert "entry 2: " in dumps.load(path)[1].examples[0].reason


@pytest.mark.parametrize(
    ("text", "value"),
    [(b'\xef\xbb\xbf{"a": 1}', {"a": 1}), (b'{"a": -Infinity}', {"a": -np.inf}), (b" [1] \n", [1])],
)
def test_json_as_it_is_written_elsewhere(text, value):
    assert jsonl.parse(text) == value


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b'{"a": ', "cut off in mid-record"),
        (b'{"a": [1, 2], "b": "x}', "cut off in mid-record"),
        (b'{"a": tru}', "not JSON"),
        (b"[" * 100_000 + b"NaN" + b"]" * 100_000, "not JSON"),
        (b'{"a": 1 2]', "not JSON"),
        (b'{"a": 1 2', "cut off in mid-record"),
        (b'{"a": "\\uD800", "b": NaN}', "not JSON"),
        (b'{"a": "\xed\xa0\x80", "b": NaN}', "invalid UTF-8"),
    ],
)
def test_json_that_is_none(text, kind):
    with pytest.raises(Unusable) as raised:
        jsonl.parse(text)
    assert raised.value.kind == kind


def test_python_s_nan_may_follow_a_byte_order_mark_and_come_with_any_letter():
    value = jsonl.parse(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00", "b": NaN}')
    assert value["a"] == "\U0001f600" and math.isnan(value["b"])


@pytest.mark.parametrize(
    ("line", "rest"),
    [
        (b'{"a":[1,2],"b":[3],"c":[4]}', b'{"a":[],"b":[],"c":[4]}'),
        (b'{"b":[3],"c":[4]}', b'{"b":[],"c":[4]}'),
        (b"[1]", b"[1]"),
        (b'{"c":1,"a":[1,2', b'{"c":1,"a":[1,2'),
        (b'{"b":[3],"a":[1],"c":[4]}', b'{"b":[3],"a":[],"c":[4]}'),
    ],
)
def test_arrays_that_nobody_reads_are_cut_out(line, rest):
    assert jsonl._without(line, [b'"a":[', b'"b":[']) == rest


def test_what_nobody_reads_is_not_parsed(tmp_path):
    path, seen = tmp_path / "log.jsonl", []
    path.write_text('{"a":[1],"b":[2]}\n')

    def decode(record):
        seen.append(record)
        return []

    assert list(jsonl.read_jsonl(path, Reading(), decode, ["b"])) == []
    assert seen == [{"a": [1], "b": []}]


def test_the_longest_line_that_is_read(tmp_path, monkeypatch):
    path = dumps.open_instruct(tmp_path, GOOD)
    monkeypatch.setattr(jsonl, "LONGEST_LINE", max(map(len, path.read_bytes().splitlines(keepends=True))))
    got, reading = dumps.load(path)
    assert len(got) == 3 and reading.rejected == {}


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jsonl could not be read"):
        list(jsonl.read_jsonl(tmp_path / "gone.jsonl", Reading(), lambda line: []))


def skyrl(tmp_path, name="step.pkl", **fields):
    """A batch of SkyRL's with one left-padded row, under other values; what was read of it."""
    batch = {
        "sequences": torch.tensor([[0, 1, 2, 3, 4]]),
        "attention_mask": torch.tensor([[0, 1, 1, 1, 1]]),
        "response_mask": torch.tensor([[0, 1, 1]]),
        "rollout_logprobs": torch.tensor([[0, -1, -2.0]]),
        "action_log_probs": torch.tensor([[0, -1.5, -2.5]]),
        "advantages": torch.tensor([[0, 3.0, 4.0]]),
        "loss_mask": None,
        7: "not a column",
    }
    (tmp_path / name).write_bytes(pickle.dumps(batch | fields))
    return dumps.load(tmp_path / name, allow_pickle=True)


def test_skyrl_s_columns(tmp_path):
    (got,), reading = skyrl(tmp_path, "step.pickle")
    assert (got.prompt_ids, got.response_ids, got.advantages) == ((1, 2), (3, 4), (3.0, 4.0))
    assert got.response_mask == (True, True) and got.turn_ids == (0, 0) and reading.notes == []
    (got,), reading = skyrl(tmp_path, action_log_probs=None, loss_mask=torch.tensor([[0.0, 1, 0]]))
    assert got.response_mask == (True, False) and got.trainer_logprobs is None
    assert any("drift cannot be measured" in note for note in reading.notes)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"response_mask": torch.ones(3)}, "a pickle without SkyRL's response_mask"),
        ({"response_mask": torch.ones(1, 9)}, "do not fit 5 sequences entries"),
        ({"attention_mask": torch.ones(1, 4)}, "do not fit 5 sequences entries"),
        ({"advantages": torch.ones(1, 2)}, "advantages has 2 entries, response_mask 3"),
        ({"rollout_logprobs": torch.ones(0, 3)}, "lengths differ: row 0: "),
    ],
)
def test_skyrl_batches_that_do_not_fit(tmp_path, fields, words):
    got, reading = skyrl(tmp_path, **fields)
    assert got == [] and words in reading.examples[0].reason


@pytest.mark.parametrize(("content", "words"), [(b"\x80\x04cut", "could not be unpickled"), ([1], "without SkyRL's")])
def test_pickles_of_something_else(tmp_path, content, words):
    (tmp_path / "a.pkl").write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    got, reading = dumps.load(tmp_path / "a.pkl", allow_pickle=True)
    assert got == [] and words in reading.examples[0].reason

"""miles' train dumps: which files belong together, whose row is whose, and what does not add up."""

import dataclasses
import math

import pytest
import torch

import dumps
from holdfast.audit.read.loaders.miles import matches, siblings

GOOD = dumps.sample_rollouts(count=3)


def miles(tmp_path, size=1, change=lambda columns: None, **payload):
    """miles' dump of one stage and `size` context-parallel ranks with other values; what was read of it."""
    dumps.miles_train(tmp_path, GOOD, size)
    for path in sorted((tmp_path / "train_data").glob("*.pt")):
        content = torch.load(path, weights_only=True)
        change(content["rollout_data"])
        torch.save({**content, **payload}, path)
    return dumps.load(tmp_path / "train_data" / "12_0.pt")


def test_miles_ranks_of_another_step_are_no_part_of_this_one(tmp_path):
    dumps.miles_train(tmp_path, GOOD, 1)
    for rank in (0, 1):
        (tmp_path / "train_data" / f"12_{rank}.pt").rename(tmp_path / "train_data" / f"13_{rank}.pt")
    dumps.miles_train(tmp_path, GOOD[:1], 1)
    assert len(dumps.load(tmp_path / "train_data" / "12_0.pt")[0]) == 1


def test_miles_without_indices_takes_every_row_for_a_sample(tmp_path):
    got, _ = miles(tmp_path, change=lambda columns: columns.pop("sample_indices"))
    assert len(got) == 2 * len(GOOD)


def test_miles_rewards_may_be_on_any_rank(tmp_path):
    stages = iter([True, False])
    got, _ = miles(tmp_path, change=lambda columns: next(stages) and columns.pop("raw_reward"))
    assert [r.reward for r in got] == [r.reward for r in GOOD]


@pytest.mark.parametrize(
    ("change", "payload", "kind"),
    [
        (lambda columns: columns.update(response_lengths=[1000] * 3), {}, "lengths differ"),
        (lambda columns: columns.update(response_lengths=[-1] * 3), {}, "lengths differ"),
        (lambda columns: columns.update(response_lengths=[None] * 3), {}, "lengths differ"),
        (lambda columns: None, {"cp_size": -1}, "context-parallel parts"),
        (lambda columns: columns.update(max_seq_lens=[1] * 3), {"qkv_format": "bshd"}, "lengths differ"),
        (lambda columns: columns.update(max_seq_lens=[999] * 3), {"qkv_format": "bshd"}, "context-parallel parts"),
    ],
)
def test_miles_samples_that_do_not_add_up(tmp_path, change, payload, kind):
    got, reading = miles(tmp_path, 2, change, **payload)
    assert got == [] and set(reading.rejected) == {kind}


def test_a_field_that_no_rank_has_is_unknown(tmp_path):
    got, reading = miles(tmp_path, 2, lambda columns: columns.pop("entropy", None))
    assert reading.rejected == {} and [r.entropy for r in got] == [None] * 3


@pytest.mark.parametrize("named", [True, False])
def test_miles_padding_is_that_of_its_other_layout_only(tmp_path, named):
    dumps.miles_train(tmp_path, GOOD, 2)
    for path in (tmp_path / "train_data").glob("*.pt"):
        content = torch.load(path, weights_only=True)
        content["rollout_data"]["max_seq_lens"] = [999] * 3
        if not named:
            del content["qkv_format"]
        torch.save(content, path)
    got, reading = dumps.load(tmp_path)
    assert reading.rejected == {} and [r.trainer_logprobs for r in got] == [r.trainer_logprobs for r in GOOD]


def test_the_length_that_is_cut_into_pieces_may_be_each_sequence_s_own(tmp_path):
    lengths = [len(r.prompt_ids) + len(r.response_ids) for r in GOOD]
    got, reading = miles(tmp_path, 2, lambda columns: columns.update(max_seq_lens=lengths), qkv_format="bshd")
    assert reading.rejected == {} and [r.trainer_logprobs for r in got] == [r.trainer_logprobs for r in GOOD]


def test_the_first_token_of_a_sequence_without_prompt_has_no_logit(tmp_path):
    written = dataclasses.replace(GOOD[0], prompt_ids=())
    dumps.miles_train(tmp_path, [written], 2)
    (got,), _ = dumps.load(tmp_path)
    assert math.isnan(got.trainer_logprobs[0]) and got.trainer_logprobs[1:] == written.trainer_logprobs[1:]


@pytest.mark.parametrize("name", ["tokens", "response_lengths"])
def test_miles_needs_its_columns(tmp_path, name):
    got, reading = miles(tmp_path, change=lambda columns: columns.pop(name))
    assert got == [] and "no lists of tokens and response_lengths" in reading.examples[0].reason


def test_miles_data_that_are_no_columns_are_named(tmp_path):
    got, reading = miles(tmp_path, rollout_data=[1, 2])
    assert got == [] and "no lists of tokens and response_lengths" in reading.examples[0].reason


def test_a_sample_that_does_not_add_up_is_named_and_the_others_are_kept(tmp_path):
    lengths = [len(GOOD[0].response_ids), 1000, len(GOOD[2].response_ids)]
    got, reading = miles(tmp_path, change=lambda columns: columns.update(response_lengths=lengths))
    assert [r.response_ids for r in got] == [GOOD[0].response_ids, GOOD[2].response_ids]
    (example,) = reading.examples
    assert example.record == 1 and "sample 1: response_length is 1000" in example.reason


def test_a_sample_has_its_index_wherever_it_is_in_the_file(tmp_path):
    got, _ = miles(tmp_path, change=lambda columns: columns.update(sample_indices=[9, 7, 8]))
    assert [r.sequence_id for r in got] == [9, 7, 8]


def test_ranks_come_in_the_order_of_their_numbers(tmp_path):
    names = ["a_12_0.pt", "a_12_2.pt", "a_12_10.pt"]
    for name in (*reversed(names), "a_2_0.pt", "12_0.pt", "a_12_.pt", "a_12_1.json"):
        (tmp_path / name).touch()
    assert [path.name for path in siblings(tmp_path / "a_12_2.pt")] == names


def test_a_dump_under_another_name_is_read_alone(tmp_path):
    path = dumps.miles_train(tmp_path, GOOD, 1).rename(tmp_path / "train_data" / "copy.pt")
    got, reading = dumps.load(path)
    assert reading.rejected == {} and [r.rollout_logprobs for r in got] == [r.rollout_logprobs for r in GOOD]


def test_any_step_is_recognised_and_words_alone_are_not(tmp_path):
    """A pickle holds 10 as the byte of a line's end."""
    path = dumps.miles_train(tmp_path, GOOD, 1)
    torch.save({**torch.load(path, weights_only=True), "rollout_id": 10}, path)
    assert matches(path, path.read_bytes()[: 1 << 16])
    words = b'{"rollout_id": 12, "rank": 0, "rollout_data": {"tokens": []}}'
    assert not matches(tmp_path / "log.jsonl", words)

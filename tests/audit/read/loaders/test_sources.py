"""What is particular to one source: placeholders, component weights, other models' traces, branches, tool output."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import dumps
from holdfast.audit.read.raw.fields import Unusable, whole

GOOD = dumps.sample_rollouts(count=3)


def edited(path, change):
    """The same JSON Lines with every record changed; what is read of it."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(record)) + "\n" for record in records))
    return dumps.load(path)


def test_nemo_rl_zeros_in_prev_logprobs_are_no_measurement(tmp_path):
    path = dumps.nemo_rl(tmp_path, GOOD)
    got, reading = edited(path, lambda r: {**r, "prev_logprobs": [[0.0] * len(r["token_ids"][0])]})
    assert all(r.trainer_logprobs is None for r in got)
    assert any("force_on_policy_ratio" in note for note in reading.notes)


def test_nemo_rl_rewards_are_the_filtered_ones_under_dynamic_sampling(tmp_path):
    path = dumps.nemo_rl(tmp_path, GOOD)
    got, _ = edited(path, lambda r: {**r, "rewards": [99.0], "filtered_rewards": [0.25]})
    assert {r.reward for r in got} == {0.25}


def test_nemo_rl_samples_without_loss_are_not_trusted(tmp_path):
    path = dumps.nemo_rl(tmp_path, GOOD)
    got, _ = edited(path, lambda r: {**r, "sample_loss_mask": [float(r["idx"] == 0)]})
    assert [any(r.trust_mask) for r in got] == [True, False, False]
    assert [r.mask_reason for r in got] == [None, "sample_loss_mask", "sample_loss_mask"]


def test_nemo_rl_lines_of_a_distillation_are_no_rollouts(tmp_path):
    path = dumps.nemo_rl(tmp_path, GOOD)
    got, reading = edited(path, lambda r: {"content": r["content"], "input_lengths": r["input_lengths"]})
    assert got == []
    assert reading.rejected == {"missing field": 3}


def test_prime_rl_tokens_of_another_model_are_not_the_policys_own(tmp_path):
    """rl_weights 0 on the last sampled token: only the cross-entropy term trains it, a frozen model wrote it."""

    def change(record):
        weights = [float(m) for m in record["loss_mask"]]
        weights[-1] = 0.0
        return {**record, "rl_weights": weights}

    got, _ = edited(dumps.prime_rl_tokens(tmp_path, GOOD), change)
    for mine, theirs in zip(got, GOOD, strict=True):
        assert mine.response_mask == (*theirs.response_mask[:-1], False)
        expected = [t and m for t, m in zip(theirs.trust_mask, mine.response_mask, strict=True)]
        assert list(mine.trust_mask) == expected


def test_prime_rl_of_a_newer_schema_is_left_out(tmp_path):
    _, reading = edited(dumps.prime_rl_tokens(tmp_path, GOOD), lambda r: {**r, "schema_version": 2})
    assert reading.rejected == {"newer schema": 3}


def trace_of(nodes, **fields):
    return {"id": "t", "nodes": nodes, "rewards": {}, **fields}


def node(parent, ids, sampled, **fields):
    values = [-0.5 * i for i in range(len(ids))] if sampled else []
    return {"parent": parent, "token_ids": ids, "mask": [sampled] * len(ids), "logprobs": values, **fields}


def read_traces(tmp_path, *traces):
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(trace) + "\n" for trace in traces))
    return dumps.load(path)


def test_every_leaf_of_a_trace_is_a_rollout(tmp_path):
    """A root with two answers, one of which is answered again: two paths."""
    nodes = [
        node(None, [1, 2], False),
        node(0, [3], True),
        node(0, [4, 5], True),
        node(2, [6], False),
        node(3, [7], True),
    ]
    got, _ = read_traces(tmp_path, trace_of(nodes))
    assert [(r.prompt_ids, r.response_ids) for r in got] == [((1, 2), (3,)), ((1, 2), (4, 5, 6, 7))]
    assert got[1].response_mask == (True, True, False, True)
    assert got[1].turn_ids == (0, 0, 0, 1)
    assert [x for x, own in zip(got[1].rollout_logprobs, got[1].response_mask, strict=False) if own] == [0.0, -0.5, 0.0]


def test_a_frozen_agents_trace_is_passed_over(tmp_path):
    nodes = [node(None, [1], False), node(0, [2], True)]
    judge = trace_of(nodes, agent={"name": "judge", "trainable": False})
    got, reading = read_traces(tmp_path, {"id": "e", "traces": [judge, trace_of(nodes)]})
    assert len(got) == 1
    assert reading.rejected == {}


def test_a_field_that_one_turn_lacks_is_unknown_for_the_sequence(tmp_path):
    scored = node(0, [2], True, trainer_logprobs=[-0.25])
    got, _ = read_traces(tmp_path, trace_of([node(None, [1], False), scored, node(1, [3], True)]))
    assert got[0].trainer_logprobs is None
    got, _ = read_traces(tmp_path, trace_of([node(None, [1], False), scored]))
    assert got[0].trainer_logprobs == (-0.25,)


def test_a_parent_that_comes_later_is_refused(tmp_path):
    _, reading = read_traces(tmp_path, trace_of([node(1, [1], False), node(0, [2], True)]))
    assert reading.rejected == {"wrong parent": 1}


def test_rewards_are_weighted_and_summed(tmp_path):
    rewards = {"a": {"score": 1.0, "weight": 0.5}, "b": {"score": 2.0}, "c": None}
    got, _ = read_traces(tmp_path, {**trace_of([node(None, [1], False), node(0, [2], True)]), "rewards": rewards})
    assert got[0].reward == 2.5  # 1 * 0.5 + 2 * 1


def test_policy_versions_are_given_where_one_version_made_the_whole(tmp_path):
    def episode(start, end):
        trace = trace_of([node(None, [1], False), node(0, [2, 3], True)])
        return {"traces": [trace], "run": {"work": {"step": 5, "policy": {"start": start, "end": end}}}}

    got, _ = read_traces(tmp_path, episode(4, 4), episode(3, 4))
    assert [r.weight_versions for r in got] == [(4, 4), None]
    assert [r.step for r in got] == [5, 5]


def test_open_instruct_end_of_an_empty_response_was_not_sampled(tmp_path):
    path = dumps.open_instruct(tmp_path, GOOD)
    got, _ = edited(path, lambda r: {**r, "response_tokens": [2], "logprobs": [float("nan")]})
    assert {r.response_mask for r in got} == {(False,)}


def test_slime_versions_of_turns_and_removed_samples(tmp_path):
    path = dumps.slime_rollout(tmp_path, GOOD)
    payload = torch.load(path, weights_only=True)
    sample = {**payload["samples"][0], "tokens": [1, 2, 3, 4, 5], "response_length": 4, "loss_mask": [1, 0, 1, 1]}
    sample |= {"rollout_log_probs": [-1.0, 0.0, -1.0, -1.0], "remove_sample": True}
    samples = [
        {**sample, "weight_versions": versions} for versions in (["3", "4"], ["3", "4", "5"], ["a"], ["9" * 5000], [])
    ]
    torch.save({**payload, "samples": samples}, path)
    got, _ = dumps.load(path)
    assert [r.weight_versions for r in got] == [(3, 3, 4, 4), None, None, None, None]
    assert {r.trust_mask for r in got} == {(False,) * 4}


def test_a_number_too_large_to_print_is_named_by_its_size():
    with pytest.raises(Unusable, match="step is int of 16610 bits"):  # 5000 / log10(2) = 16609.6
        whole(10**5000, "step")


@pytest.mark.parametrize(
    ("reward", "expected"), [(1.5, 1.5), ({"score": 2.0}, 2.0), ({"a": 1.0, "b": 2.0}, None), (None, None)]
)
def test_slime_rewards(tmp_path, reward, expected):
    path = dumps.slime_rollout(tmp_path, GOOD)
    payload = torch.load(path, weights_only=True)
    torch.save({**payload, "samples": [{**payload["samples"][0], "reward": reward}]}, path)
    assert dumps.load(path)[0][0].reward == expected


def test_miles_refuses_what_cannot_be_joined(tmp_path):
    """A missing context-parallel rank: half of the response's log-probabilities are nowhere."""
    dumps.miles_train(tmp_path, GOOD)
    for rank in (1, 3):
        (tmp_path / "train_data" / f"12_{rank}.pt").unlink()
    got, reading = dumps.load(tmp_path)
    assert got == []
    assert reading.rejected == {"context-parallel parts": 3}
    assert "rank 1 of 2 has no entries" in reading.examples[0].reason


@pytest.mark.parametrize("size", [1, 2, 3])
def test_miles_joins_any_number_of_context_parallel_ranks(tmp_path, size):
    dumps.miles_train(tmp_path, GOOD, size)
    got, reading = dumps.load(tmp_path)
    assert reading.rejected == {}
    assert [r.trainer_logprobs for r in got] == [r.trainer_logprobs for r in GOOD]


def test_miles_dashboard_columns(tmp_path):
    (tmp_path / "dashboard_columns").mkdir()
    schema = pa.schema(
        [
            ("sample_index", pa.int32()),
            ("response_length", pa.int32()),
            ("total_length", pa.int32()),
            ("tokens", pa.list_(pa.int32())),
            ("loss_mask", pa.list_(pa.int8())),
            ("rollout_log_probs", pa.list_(pa.float32())),
        ]
    )
    rows = [
        {
            "sample_index": r.sequence_id,
            "response_length": len(r.response_ids),
            "total_length": len(r.prompt_ids) + len(r.response_ids),
            "tokens": [*r.prompt_ids, *r.response_ids],
            "loss_mask": [int(m) for m in r.response_mask],
            "rollout_log_probs": list(r.rollout_logprobs),
        }
        for r in GOOD
    ]
    pq.write_table(
        pa.Table.from_pylist(rows, schema), tmp_path / "dashboard_columns" / "rollout_12.parquet", row_group_size=2
    )
    got, reading = dumps.load(tmp_path)
    assert reading.rejected == {}
    assert [r.rollout_logprobs for r in got] == [r.rollout_logprobs for r in GOOD]
    assert {r.step for r in got} == {12}


def answer(**choice):
    return {"id": "c", "choices": [{"index": 0, "finish_reason": "stop", **choice}]}


def read_answers(tmp_path, *answers):
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in answers))
    return dumps.load(path)


def test_completions_and_batch_outputs(tmp_path):
    logprobs = {"tokens": ["token_id:5", "token_id:6"], "token_logprobs": [-1.0, None], "top_logprobs": []}
    completion = answer(logprobs=logprobs, text="ab", prompt_token_ids=[1, 2])
    batch = {"id": "b", "custom_id": "x", "response": {"status_code": 200, "body": completion}}
    got, _ = read_answers(tmp_path, completion, batch)
    assert [r.response_ids for r in got] == [(5, 6), (5, 6)]
    assert got[0].prompt_ids == (1, 2)
    assert got[0].rollout_logprobs[0] == -1.0
    assert str(got[0].rollout_logprobs[1]) == "nan"


def test_texts_without_ids_get_stand_ins_and_a_note(tmp_path):
    content = [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -9999.0}, {"token": "a", "logprob": -2.0}]
    got, reading = read_answers(tmp_path, answer(logprobs={"content": content}, message={"content": "aba"}))
    assert got[0].token_texts == ("a", "b", "a")
    assert got[0].response_ids[0] == got[0].response_ids[2] != got[0].response_ids[1]
    assert got[0].rollout_logprobs == (-1.0, float("-inf"), -2.0)  # vLLM's server writes -9999 for -inf
    assert any("stand-ins" in note and "return_token_ids" in note for note in reading.notes)


def test_an_id_of_thousands_of_digits_is_no_id(tmp_path):
    logprobs = {"tokens": ["token_id:" + "9" * 5000], "token_logprobs": [-1.0]}
    got, reading = read_answers(tmp_path, answer(logprobs=logprobs))
    assert len(got) == 1
    assert any("stand-ins" in note for note in reading.notes)


def test_vllm_request_outputs_take_the_sampled_token_and_not_the_first(tmp_path):
    entry = {"7": {"logprob": -0.1, "rank": 1, "decoded_token": "x"}, "9": {"logprob": -3.0, "decoded_token": "y"}}
    output = {"token_ids": [9], "logprobs": [entry], "text": "y", "finish_reason": "length"}
    lacking = {**output, "token_ids": [8]}
    lines = [{"prompt_token_ids": [1], "prompt": "p", "outputs": [o]} for o in (output, lacking)]
    got, reading = read_answers(tmp_path, *lines)
    assert [r.rollout_logprobs for r in got] == [(-3.0,)]
    assert got[0].token_texts == ("y",)
    assert reading.rejected == {"sampled token not scored": 1}


class TrainingInputBatch(dict):
    """SkyRL's class by name; the loader must not need it."""


def test_skyrl_pickles_with_permission(tmp_path):
    """Left-padded as SkyRL pads: row 0 has prompt 1 2 and response 3 4, row 1 prompt 5 and response 6 7 8."""
    import pickle

    batch = TrainingInputBatch(
        sequences=torch.tensor([[0, 1, 2, 3, 4], [0, 5, 6, 7, 8]]),
        attention_mask=torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 1, 1]]),
        response_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]),
        loss_mask=torch.tensor([[0.0, 1, 1], [1, 0, 1]]),
        rollout_logprobs=torch.tensor([[0, -1, -2], [-3, 0, -4.0]]),
        action_log_probs=torch.tensor([[0, -1.5, -2.5], [-3.5, 0, -4.5]]),
        advantages=torch.ones(2, 3),
        rewards=torch.tensor([[0, 0, 1.0], [0, 0, 0.5]]),
    )
    data = pickle.dumps(batch).replace(b"TrainingInputBatch", b"TrainingInputGone!")
    (tmp_path / "global_step_1.pkl").write_bytes(data)
    assert dumps.load(tmp_path)[1].rejected == {"unreadable file": 1}
    got, reading = dumps.load(tmp_path, allow_pickle=True)
    assert reading.rejected == {}
    assert [(r.prompt_ids, r.response_ids) for r in got] == [((1, 2), (3, 4)), ((5,), (6, 7, 8))]
    assert [r.trainer_logprobs for r in got] == [(-1.5, -2.5), (-3.5, 0.0, -4.5)]
    assert [r.response_mask for r in got] == [(True, True), (True, False, True)]
    assert [r.reward for r in got] == [1.0, 0.5]

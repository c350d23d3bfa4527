"""Rows under other people's names: the response found, columns brought to it, padding removed, what lacks named."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import dumps
from dumps import load
from holdfast.audit.read.raw.names import ALIASES, own_columns
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.source import find_files, read_files
from holdfast.errors import ConfigError, DataError

ROW = {"completion_ids": [4, 5, 6], "old_per_token_logps": [-1.0, -2.0, -3.0], "sampling_per_token_logps": [-1.5] * 3}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def only(path, **options):
    ((rollout,), reading) = load(path, **options)
    assert reading.examples == []
    return rollout, reading


def test_no_alias_stands_for_two_fields():
    names = [name for group in ALIASES.values() for name in group]
    assert sorted(names) == sorted(set(names))
    assert all(ours == group[0] or ours in ("token_ids", "logprobs") for ours, group in ALIASES.items())


@pytest.mark.parametrize("prompt", [{"prompt_ids": [1, 2]}, {"input_ids": [1, 2]}, {"input_ids": [1, 2, 4, 5, 6]}])
def test_trls_names(tmp_path, prompt):
    line = ROW | prompt | {"advantages": 0.5, "rewards": {"format": 1.0}, "completion_mask": [1, 0, 1], "uid": "p7"}
    rollout, reading = only(write(tmp_path / "a.jsonl", line))
    assert (rollout.prompt_ids, rollout.response_ids) == ((1, 2), (4, 5, 6))
    assert rollout.trainer_logprobs == (-1.0, -2.0, -3.0) and rollout.rollout_logprobs == (-1.5,) * 3
    assert rollout.response_mask == (True, False, True) and rollout.turn_ids == (0, 0, 1)
    assert rollout.advantages == (0.5,) * 3 and rollout.reward == 1.0 and rollout.group_id is not None
    assert reading.notes == []


@pytest.mark.parametrize("width", [2, 4, 5], ids=["response", "all but the first", "all"])
def test_a_whole_sequence_cut_by_its_mask(tmp_path, width):
    """Tokens 10 11 12 | 13 14: entry t of a column as long as the sequence scores token t, of one shorter t + 1."""
    values = [-0.25, -0.5, -0.75, -1.0, -2.0][-width:]
    line = {"input_ids": [10, 11, 12, 13, 14], "loss_mask": [0, 0, 0, 1, 1][-width:]}
    rollout, _ = only(write(tmp_path / "a.jsonl", line | {"rollout_log_probs": values, "train_log_probs": values}))
    assert (rollout.prompt_ids, rollout.response_ids) == ((10, 11, 12), (13, 14))
    assert rollout.rollout_logprobs == rollout.trainer_logprobs == (-1.0, -2.0)


@pytest.mark.parametrize("said", [{"prompt_length": 3}, {"response_length": 2}])
def test_a_whole_sequence_cut_by_a_length(tmp_path, said):
    rollout, _ = only(write(tmp_path / "a.jsonl", {"tokens": [10, 11, 12, 13, 14], "log_probs": [-1.0, -2.0]} | said))
    assert (rollout.prompt_ids, rollout.response_ids) == ((10, 11, 12), (13, 14))


def test_a_side_that_has_no_name(tmp_path):
    """The engine's where nothing is known, else the side that is missing."""
    rollout, reading = only(write(tmp_path / "a.jsonl", {"response_ids": [1], "logprobs": [-1.0]}))
    assert rollout.rollout_logprobs == (-1.0,) and rollout.trainer_logprobs is None
    assert any("--map trainer_logprobs=logprobs" in note for note in reading.notes)
    line = {"response_ids": [1], "logprobs": [-1.0], "rollout_log_probs": [-2.0]}
    rollout, _ = only(write(tmp_path / "a.jsonl", line))
    assert (rollout.rollout_logprobs, rollout.trainer_logprobs) == ((-2.0,), (-1.0,))
    rollout, _ = only(tmp_path / "a.jsonl", columns={"trainer_logprobs": "rollout_log_probs"})
    assert rollout.trainer_logprobs == (-2.0,)


def test_columns_of_ones_own(tmp_path):
    line = {"toks": [1, 2], "lp": {"engine": [-1.0, -2.0]}, "meta": {"r": 3.0}}
    path = write(tmp_path / "a.jsonl", line)
    with pytest.raises(DataError, match=r"lacks token ids of the response: looked for response_ids, .*lp, meta, toks"):
        find_files(path)
    columns = own_columns(["response_ids=toks", "rollout_logprobs=lp.engine", "reward=meta.r"])
    ((_, chunk),) = read_files(find_files(path, columns=columns), Reading(columns=columns))
    rollout = chunk.rollout(0)
    assert (rollout.response_ids, rollout.rollout_logprobs, rollout.reward) == ((1, 2), (-1.0, -2.0), 3.0)
    for wrong in ("response_ids", "tokens_of=x", "reward="):
        with pytest.raises(ConfigError, match="ours=theirs, where ours is one of prompt_ids"):
            own_columns([wrong])


def test_rows_inside_a_record(tmp_path):
    sample = {"output_ids": [1, 2], "logprobs": [-1.0, -1.0], "score": 1.0}
    line = {"global_step": 3, "samples": [sample, sample | {"score": 0.0}], "info": {"a": 1}}
    rollouts, reading = load(write(tmp_path / "a.jsonl", line))
    assert [(r.step, r.reward) for r in rollouts] == [(3, 1.0), (3, 0.0)]
    assert not reading.rejected


def test_bad_rows_are_named_and_good_ones_kept(tmp_path):
    short = ROW | {"old_per_token_logps": [-1.0]}
    vague = {"input_ids": [1, 2, 3], "logprobs": [-1.0]}
    bounds = ROW | {"kl_lower": [0.1, 0.1, 0.1]}
    rollouts, reading = load(write(tmp_path / "a.jsonl", ROW, short, vague, {"step": 1}, bounds))
    assert len(rollouts) == 1
    assert reading.rejected == {"lengths differ": 1, "missing field": 3}
    reasons = [bad.reason for bad in reading.examples]
    assert "old_per_token_logps has 1 entries" in reasons[0]
    assert "where the response begins in input_ids: looked for response_mask" in reasons[1]
    assert "looked for response_ids, responses" in reasons[2] and "the fields are step" in reasons[2]
    assert "come together" in reasons[3]


def test_without_log_probabilities_the_names_are_listed(tmp_path):
    _, reading = load(write(tmp_path / "a.jsonl", {"response_ids": [1], "prompt_ids": [2]}))
    assert any("rollout_log_probs" in note and "old_log_probs" in note for note in reading.notes)


def padded(rollouts, pad, width):
    """verl's batch: prompts padded on the left, responses on the right."""
    longest = max(len(r.prompt_ids) for r in rollouts)

    def values_of(name):
        return [list(getattr(r, name)) for r in rollouts]

    def table(name, fill, dtype):
        return torch.tensor([[*v, *[fill] * (width - len(v))] for v in values_of(name)], dtype=dtype)

    prompts = [[*[pad] * (longest - len(r.prompt_ids)), *r.prompt_ids] for r in rollouts]
    return {
        "prompts": torch.tensor(prompts),
        "responses": table("response_ids", pad, torch.int64),
        "response_mask": table("response_mask", False, torch.int64),
        "rollout_log_probs": table("rollout_logprobs", 0.0, torch.float32),
        "old_log_probs": table("trainer_logprobs", 0.0, torch.float32),
        "token_level_scores": torch.tensor([[r.reward, *[0.0] * (width - 1)] for r in rollouts]),
        "uid": [f"p{r.group_id}" for r in rollouts],
        "global_steps": 4,
    }


@pytest.mark.parametrize("attention", [True, False])
def test_padded_tensors(tmp_path, attention):
    """The pad id is also a real one (0): it is removed from the ends, never from the middle."""
    written = dumps.sample_rollouts(count=8)
    written = [r for r in written if r.response_mask[-1]]
    width = max(len(r.response_ids) for r in written) + 2
    batch = padded(written, 0, width)
    if attention:
        lengths = torch.tensor([len(r.response_ids) for r in written])
        before = torch.tensor([len(r.prompt_ids) for r in written])
        longest = batch["prompts"].shape[1]
        left = torch.arange(longest)[None] >= longest - before[:, None]
        batch["attention_mask"] = torch.cat([left, torch.arange(width)[None] < lengths[:, None]], 1).long()
    torch.save({"batch": batch, "meta_info": {}}, tmp_path / "batch.pt")
    got, reading = load(tmp_path / "batch.pt")
    assert not reading.rejected
    for mine, theirs in zip(got, written, strict=True):
        for name in ("prompt_ids", "response_ids", "response_mask", "rollout_logprobs", "trainer_logprobs", "turn_ids"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name), err_msg=name)
        assert mine.reward == pytest.approx(theirs.reward) and mine.step == 4


def test_tensors_without_token_ids_name_what_they_have(tmp_path):
    torch.save({"responses": torch.zeros(()), "loss": torch.zeros(3)}, tmp_path / "a.pt")
    _, reading = load(tmp_path / "a.pt")
    assert "the fields are loss, responses" in reading.examples[0].reason


def test_parquet(tmp_path):
    rows = [ROW | {"prompt": "a", "reward": 1.0}, ROW | {"prompt": "b", "reward": None, "old_per_token_logps": [-1.0]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    ((rollout,), reading) = load(tmp_path / "a.parquet")
    assert (rollout.response_ids, rollout.prompt_text, rollout.reward) == ((4, 5, 6), "a", 1.0)
    assert reading.rejected == {"lengths differ": 1}
    assert reading.bytes_read == pytest.approx((tmp_path / "a.parquet").stat().st_size, abs=1)


def test_dumps_of_text_are_answered_with_the_switch(tmp_path):
    line = {"input": "q", "output": "a", "gts": "4", "score": 0.0, "step": 1}
    with pytest.raises(DataError, match=r"verl's rollout dump .*policy_loss.records"):
        find_files(write(tmp_path / "1.jsonl", line))
    trl = [{"step": 1, "prompt": "q", "completion": "a", "accuracy": 1.0, "advantage": 0.5}]
    pq.write_table(pa.Table.from_pylist(trl), tmp_path / "completions_00001.parquet")
    (tmp_path / "1.jsonl").unlink()
    with pytest.raises(DataError, match=r"TRL's table of completions .* OUTPUT_DIR/_rollouts"):
        find_files(tmp_path)


def test_metrics_and_checkpoints_are_not_taken_for_rollouts(tmp_path):
    write(tmp_path / "metrics.jsonl", {"step": 1, "tokens": 12, "completion_tokens": 3, "prompts": "x"})
    torch.save({"embed_tokens.weight": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(DataError, match="none of 2 files"):
        find_files(tmp_path)

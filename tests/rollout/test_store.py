"""What is written comes back, in float32 and in few bytes."""

import dataclasses
import math
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from holdfast.errors import DataError
from holdfast.rollout.store import SCHEMA, read_rollouts, write_rollouts
from holdfast.types import Rollout

FULL = Rollout(
    prompt_ids=(1, 5, 6),
    response_ids=(7, 2),
    rollout_logprobs=(-0.5, -1.25),
    trainer_logprobs=(-0.75, -1.5),
    response_mask=(True, False),
    kl_exact=(0.125, 0.0),
    kl_lower=(0.0625, 0.0),
    tv_lower=(0.125, 0.0),
    tv_upper=(0.25, 1.0),
    entropy=(1.5, 0.25),
    advantages=(0.5, 0.5),
    trust_mask=(False, True),
    turn_ids=(0, 1),
    weight_versions=(3, 4),
    experts_changed=(0, 2),
    support_size=(0, 7),
    reward=1.0,
    mask_reason="trm_max",
    finish_reason="stop",
    step=9,
    sequence_id=2**40,
    group_id=1,
    environment="ledger",
    temperature=0.5,
    top_p=0.75,
    top_k=20,
    min_p=0.125,
    prompt_text="a\x00\n<b>",
    response_text="é",
    token_texts=("é", "<eos>"),
    extra={"note": [1, {"deep": None}]},
)


def test_every_field_comes_back(tmp_path):
    assert all(getattr(FULL, f.name) for f in dataclasses.fields(Rollout))
    bare = Rollout(prompt_ids=(), response_ids=())
    assert write_rollouts(tmp_path / "r.parquet", [FULL, bare]) == 2
    assert list(read_rollouts(tmp_path / "r.parquet")) == [FULL, bare]
    assert [field.name for field in SCHEMA] == [f.name for f in dataclasses.fields(Rollout)]


def test_absent_is_not_empty_and_infinities_survive(tmp_path):
    rollout = Rollout(prompt_ids=(1,), response_ids=(2,), rollout_logprobs=(-math.inf,), kl_exact=())
    write_rollouts(tmp_path / "r.parquet", [rollout])
    found = next(read_rollouts(tmp_path / "r.parquet"))
    assert (found.rollout_logprobs, found.kl_exact, found.trainer_logprobs) == ((-math.inf,), (), None)


def test_bounds_come_back_bit_for_bit(tmp_path):
    bounds = torch.rand(3, 500, generator=torch.Generator().manual_seed(0)).sort(dim=0).values
    kl, low, high = (tuple(row.tolist()) for row in bounds)
    rollout = Rollout((1,), tuple(range(500)), kl_lower=kl, tv_lower=low, tv_upper=high)
    write_rollouts(tmp_path / "r.parquet", [rollout])
    assert next(read_rollouts(tmp_path / "r.parquet")) == rollout
    column = pq.ParquetFile(tmp_path / "r.parquet").metadata.row_group(0).column(6)
    assert column.path_in_schema == "kl_lower.list.element" and "BYTE_STREAM_SPLIT" in column.encodings


def test_rollouts_stream_through_in_batches(tmp_path):
    many = (Rollout(prompt_ids=(i,), response_ids=(i, i), reward=0.5) for i in range(25))
    assert write_rollouts(tmp_path / "r.parquet", many, rows_per_group=10) == 25
    assert pq.ParquetFile(tmp_path / "r.parquet").num_row_groups == 3
    assert [r.prompt_ids[0] for r in read_rollouts(tmp_path / "r.parquet", rows_per_batch=4)] == list(range(25))
    stream = read_rollouts(tmp_path / "r.parquet")
    assert next(stream).prompt_ids == (0,)


def test_a_token_takes_few_bytes(tmp_path):
    draw = random.Random(0)
    rollouts = []
    for _ in range(64):
        logprobs = tuple(-draw.expovariate(2.0) for _ in range(512))
        noisy = tuple(value + draw.gauss(0, 0.01) for value in logprobs)
        ids = tuple(draw.randrange(64) for _ in range(512))
        rollouts.append(Rollout((1, 2), ids, rollout_logprobs=logprobs, trainer_logprobs=noisy))
    write_rollouts(path := tmp_path / "r.parquet", rollouts)
    # two random float32 need at least 3 of their 4 bytes each, an id of 64 one byte
    assert path.stat().st_size / (64 * 512) < 10
    column = pq.ParquetFile(path).metadata.row_group(0).column(2)
    assert column.path_in_schema == "rollout_logprobs.list.element"
    assert (column.compression, "BYTE_STREAM_SPLIT" in column.encodings) == ("ZSTD", True)


def test_a_failed_write_leaves_no_file(tmp_path):
    def failing():
        yield FULL
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_rollouts(tmp_path / "r.parquet", failing())
    assert not (tmp_path / "r.parquet").exists()


def test_other_files_are_refused(tmp_path):
    text = tmp_path / "text.parquet"
    text.write_text("not parquet")
    with pytest.raises(DataError, match="is not a parquet file"):
        list(read_rollouts(text))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="is parquet, but not of Holdfast rollouts"):
        list(read_rollouts(tmp_path / "other.parquet"))
    newer = pa.table({"response_ids": [[1]]}).replace_schema_metadata({b"holdfast_rollouts": b"99"})
    pq.write_table(newer, tmp_path / "newer.parquet")
    with pytest.raises(DataError, match="has rollout schema 99, this version reads up to 1: upgrade"):
        list(read_rollouts(tmp_path / "newer.parquet"))

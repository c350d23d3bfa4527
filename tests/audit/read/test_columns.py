"""Rollouts as columns, and what follows from them, against plain loops over the rollouts."""

import math

import numpy as np
import pytest

from holdfast.audit.measure.tokens import FOLDS
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import as_rollouts, chunk_of, pack
from holdfast.audit.read.loaders.own import read
from holdfast.audit.read.reading import Reading
from holdfast.rollout.store import write_rollouts
from holdfast.types import Rollout

MIXED = [
    Rollout((1, 2), (5, 6, 7), (-1.0, -2.0, -0.5), (-1.5, -2.0, math.nan), (True, True, True), step=3, group_id=7),
    Rollout((1, 2), (8, 9), (-0.25, -0.125), None, None, reward=1.0, step=3, group_id=7, environment="math"),
    Rollout((1, 3), (), (), (), (), step=4, group_id=1),
    Rollout((4,), (3, 3, 3), (-1.0, 0.0, -1.0), (-1.0, 0.5, -1.25), (True, False, True), step=4, group_id=1),
]


def from_parquet(tmp_path, rollouts):
    write_rollouts(tmp_path / "run.parquet", rollouts)
    (chunk,) = read(tmp_path / "run.parquet", Reading())
    return chunk


@pytest.fixture(params=["objects", "parquet"])
def chunk(request, tmp_path):
    return chunk_of(MIXED) if request.param == "objects" else from_parquet(tmp_path, MIXED)


def test_offsets_and_missing_fields(chunk):
    assert chunk.offsets.tolist() == [0, 3, 5, 5, 8]
    assert chunk.token_count == 8
    assert chunk.present["trainer_logprobs"].tolist() == [True, False, True, True]
    assert np.isnan(chunk.tokens["trainer_logprobs"]).tolist() == [False, False, True, True, True, False, False, False]
    assert chunk.present["reward"].tolist() == [False, True, False, False]
    assert chunk.numbers["step"].tolist() == [3, 3, 4, 4]
    assert chunk.words["environment"].tolist() == [None, "math", None, None]
    assert "kl_exact" not in chunk.present


def test_a_missing_field_is_not_a_faulty_one(chunk):
    view = View(chunk)
    assert view.given("trainer_logprobs").tolist() == [True] * 3 + [False] * 2 + [True] * 3
    assert view.given("kl_exact").tolist() == [False] * 8


def test_own_and_measured_tokens(chunk):
    view = View(chunk)
    assert view.own.tolist() == [True, True, True, True, True, True, False, True]
    # token 2 has a NaN, 3 and 4 no trainer, 6 is not the policy's own
    assert view.measured.tolist() == [True, True, False, False, False, True, False, True]
    assert view.sequence_measured.tolist() == [2, 0, 0, 2]


def test_log_ratio_is_trainer_minus_engine(chunk):
    view = View(chunk)
    assert view.log_ratio.tolist() == [-0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -0.25]
    # exp(-.5) - 1 + .5 = .10653066; exp(-.25) - 1 + .25 = .02880078
    assert view.k3[0] == pytest.approx(0.10653066, abs=1e-7)
    assert view.k3[7] == pytest.approx(0.02880078, abs=1e-7)


def test_positions_and_sums_per_sequence(chunk):
    view = View(chunk)
    assert view.sequence.tolist() == [0, 0, 0, 1, 1, 3, 3, 3]
    assert view.position.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert view.sum(view.size).tolist() == [0.5, 0.0, 0.0, 0.25]
    assert view.max(view.size).tolist() == [0.5, 0.0, 0.0, 0.25]


def test_rollouts_of_a_prompt_share_a_fold(chunk):
    view = View(chunk)
    assert view.fold[0] == view.fold[1]
    assert view.fold[2] == view.fold[3]
    assert ((view.fold >= 0) & (view.fold < FOLDS)).all()


def test_folds_spread_consecutive_groups(tmp_path):
    many = [Rollout((1,), (1,), step=1, group_id=i) for i in range(6400)]
    counts = np.bincount(View(chunk_of(many)).fold, minlength=FOLDS)
    assert counts.min() > 50  # 100 expected, standard deviation 10
    assert counts.max() < 150


def test_prompts_are_told_apart_and_together(chunk):
    hashes = chunk.prompt_hashes
    assert hashes[0] == hashes[1]
    assert len({*hashes.tolist()}) == 3


def test_prompt_order_matters_in_parquet(tmp_path):
    chunk = from_parquet(
        tmp_path, [Rollout((1, 2), (1,)), Rollout((2, 1), (1,)), Rollout((), (1,)), Rollout((0,), (1,))]
    )
    assert len({*chunk.prompt_hashes.tolist()}) == 4


def test_one_rollout_comes_back_whole(chunk):
    assert list(as_rollouts(chunk))[3] == MIXED[3]
    assert chunk.rollout(1) == MIXED[1]


def test_packing_keeps_every_rollout_once():
    chunks = list(pack(iter(MIXED), tokens=4))
    assert [len(c) for c in chunks] == [2, 2]
    assert [r for c in chunks for r in as_rollouts(c)][:2] == MIXED[:2]
    assert list(pack(iter([]))) == []


def test_a_sequence_with_fields_of_different_lengths_is_left_out_by_name(tmp_path):
    reading = Reading()
    write_rollouts(tmp_path / "run.parquet", [MIXED[0], Rollout((1,), (5, 6), (-1.0,)), MIXED[3]])
    (chunk,) = read(tmp_path / "run.parquet", reading)
    assert len(chunk) == 2
    assert chunk.rollout(1) == MIXED[3]
    assert View(chunk).size.tolist() == [0.5, 0, 0, 0, 0, 0.25]
    (bad,) = reading.examples
    assert bad.record == 1
    assert bad.reason == "lengths differ: rollout_logprobs has 1 entries, response_ids 2"


@pytest.mark.slow
def test_chunks_of_a_file_equal_the_file(tmp_path):
    rng = np.random.default_rng(0)
    runs = [
        Rollout((i,), tuple(range(n)), tuple((-rng.random(n)).tolist()), step=i)
        for i, n in enumerate(rng.integers(0, 300, 5000).tolist())
    ]
    write_rollouts(tmp_path / "run.parquet", runs)
    reading = Reading()
    chunks = list(read(tmp_path / "run.parquet", reading))
    assert len(chunks) > 2
    assert [r.step for c in chunks for r in as_rollouts(c)] == list(range(5000))
    flat = np.concatenate([c.tokens["rollout_logprobs"] for c in chunks])
    assert flat == pytest.approx(np.concatenate([np.float32(r.rollout_logprobs) for r in runs]))
    assert reading.bytes_read == pytest.approx((tmp_path / "run.parquet").stat().st_size, rel=0.01)

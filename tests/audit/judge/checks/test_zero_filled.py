"""Exact zeros that were never computed, against certain tokens that round to 0."""

import dataclasses

from holdfast.audit.judge.checks.data.zero_filled import ZeroFilled
from holdfast.types import Rollout


def one(engine, trainer, **more):
    return Rollout((1,), tuple(range(len(engine))), tuple(engine), None if trainer is None else tuple(trainer), **more)


def test_one_zero_is_named(look):
    (got,) = look(ZeroFilled, [one([-1.0, 0.0, -0.5], [-1.0, -2.0, -0.5])])
    assert got.evidence["engine"] == 1
    assert got.where.positions == ((0, 1),)
    assert got.invalidates  # 1 of 3 tokens


def test_a_certain_token_is_no_lost_value(look):
    assert look(ZeroFilled, [one([0.0, 0.0], [-1e-6, -0.69])]) == []  # log ½ = -0.693


def test_the_trainer_is_looked_at_too(look):
    (got,) = look(ZeroFilled, [one([-1.0, -3.0], [-1.0, 0.0])])
    assert (got.evidence["engine"], got.evidence["trainer"]) == (0, 1)
    assert "trainer" in got.headline


def test_tool_output_may_be_zero(look):
    assert look(ZeroFilled, [one([-1.0, 0.0], [-1.0, -5.0], response_mask=(True, False))]) == []


def test_whole_sequences_without_a_trainer(look):
    filled, certain = one([0.0] * 16, None), one([0.0] * 15, None)
    (got,) = look(ZeroFilled, [filled, certain, one([0.0] * 15 + [-1.0], None)])
    assert got.evidence["whole sequences"] == 1
    assert got.invalidates


def test_zeros_of_one_id_are_left_to_forced_tokens(look):
    forced = [Rollout((i,), (4, 9), (-1.0, 0.0), (-1.0, -6.0)) for i in range(10)]
    assert look(ZeroFilled, forced) == []
    mixed = [dataclasses.replace(r, response_ids=(4, i)) for i, r in enumerate(forced)]
    assert len(look(ZeroFilled, mixed)) == 1


def test_a_kept_set_of_one_token_is_zero_by_right(look, faulty):
    """With top-p recorded, zeros that the trainer contradicts no more often than other tokens are no error."""
    drift = [(-0.1, -1.0)] * 10 + [(-0.1, -0.1)] * 90 + [(0.0, -1.0)] * 20 + [(0.0, 0.0)] * 180
    engine, trainer = zip(*drift, strict=True)
    assert look(ZeroFilled, [one(engine, trainer, top_p=0.9)]) == []  # 20 < 10 + 2 · 10/100 · 200 = 50
    assert len(look(ZeroFilled, [one(engine, trainer, top_p=1.0)])) == 1
    lost = [(-0.1, -0.1)] * 100 + drift[100:]
    engine, trainer = zip(*lost, strict=True)
    assert len(look(ZeroFilled, [one(engine, trainer, top_p=0.9)])) == 1  # 20 ≥ 10 + 0
    assert look(ZeroFilled, faulty("trainer_support", 0.8)) == []


def test_a_shifted_sequence_is_not_told_twice(look, faulty):
    assert look(ZeroFilled, faulty("one_late", 0.1)) == []


def test_healthy(look, healthy):
    assert look(ZeroFilled, healthy()) == []
    assert look(ZeroFilled, healthy(turns=3)) == []

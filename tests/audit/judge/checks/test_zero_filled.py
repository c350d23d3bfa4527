"""Exact zeros that were never computed, against certain tokens that round to 0."""

import dataclasses

import numpy as np

from holdfast.audit.judge.checks.data.zero_filled import ZeroFilled
from holdfast.types import Rollout


def one(engine, trainer, **more):
    return Rollout((1,), tuple(range(len(engine))), tuple(engine), None if trainer is None else tuple(trainer), **more)


def test_zeros_beside_ordinary_values_are_named(look):
    (got,) = look(ZeroFilled, [one([-1.0, 0.0, 0.0, 0.0, 0.0], [-1.0, -2.0, -1.5, -0.8, -3.0])])
    assert got.severity == "critical"
    assert got.evidence["engine"] == 4
    assert got.where.positions[0] == (0, 4)
    assert got.invalidates  # 4 of 5 tokens


def test_one_contradicted_zero_is_never_the_headline(look):
    """An honest 0 of one side beside a wrong value of the other looks the same: one token proves no side wrong."""
    for engine, trainer in (([-1.0, 0.0], [-1.0, -12.0]), ([-1.0, -12.0], [-1.0, 0.0]), ([-1.0, 0.0], [-1.0, -2.0])):
        (got,) = look(ZeroFilled, [one(engine, trainer)])
        assert got.severity == "info"
        assert "cannot be told" in got.headline
        assert not got.invalidates


def test_zeros_beside_absurd_values_do_not_say_which_side_is_wrong(look):
    (got,) = look(ZeroFilled, [one([0.0] * 6, [-9.0, -8.0, -7.0, -12.0, -1.0, -2.0])])
    assert got.severity == "warning"
    assert "which of them is wrong cannot be told" in got.headline


def test_a_certain_token_is_no_lost_value(look):
    assert look(ZeroFilled, [one([0.0, 0.0], [-1e-6, -0.69])]) == []  # log ½ = -0.693


def test_the_trainer_is_looked_at_too(look):
    (got,) = look(ZeroFilled, [one([-1.0, -3.0, -2.0, -1.0, -0.9], [-1.0, 0.0, 0.0, 0.0, 0.0])])
    assert (got.evidence["engine"], got.evidence["trainer"]) == (0, 4)
    assert "trainer" in got.headline


def alone(share, seed=0, certain=0.3):
    """Rollouts without a trainer: `certain` of the ids are certain to 1e-6, others are open; a share is set to 0."""
    rng = np.random.default_rng(seed)
    for i in range(60):
        ids = rng.integers(0, 64, 120)
        open_ = ids >= 64 * certain
        logprobs = np.where(open_, -rng.exponential(1.0, 120), -1e-3 * rng.random(120))
        logprobs[rng.random(120) < share] = 0.0
        yield Rollout((i,), tuple(ids.tolist()), tuple(logprobs.tolist()))


def test_zeros_on_every_token_id_need_no_trainer(look):
    assert look(ZeroFilled, list(alone(0.0))) == []
    (got,) = look(ZeroFilled, list(alone(0.4)))
    assert got.severity == "critical" and got.invalidates
    assert got.headline.startswith("40% of the engine's") or got.headline.startswith("39%")


def test_zeros_of_some_ids_are_certainty(look):
    """A policy that is certain of most tokens, whatever their share, leaves some ids of which it hardly ever is."""
    rng = np.random.default_rng(1)
    run = []
    for r in alone(0.0, certain=0.8):
        values = np.array(r.rollout_logprobs)
        values[(np.array(r.response_ids) < 51) & (rng.random(120) < 0.9)] = 0.0
        run.append(dataclasses.replace(r, rollout_logprobs=tuple(values.tolist())))
    assert look(ZeroFilled, run) == []


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

"""Slope and balance of weights, by hand and against the temperature and support that were really used."""

import dataclasses
import math

import numpy as np
import pytest

from holdfast.audit.judge.checks import calibration as c
from holdfast.audit.judge.checks.calibration import Calibration
from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.data.support_mismatch import SupportMismatch
from holdfast.audit.judge.checks.data.temperature_mismatch import TemperatureMismatch
from holdfast.audit.judge.checks.data.wrong_token import WrongToken
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import chunk_of
from holdfast.types import Rollout

log = math.log


def summed(*rollouts):
    calibration = Calibration()
    calibration.update(View(chunk_of(rollouts)))
    return calibration


def test_balance_by_hand():
    """Weights less one: 0.2/0.8 - 1 = -0.75 (far), 0.5/0.4 - 1 = 0.25 (near), 0.3/0.1 - 1 = 2 (far)."""
    got = summed(Rollout((1,), (1, 2, 3), (log(0.8), log(0.4), log(0.1)), (log(0.2), log(0.5), log(0.3))))
    assert got.tokens == 3
    assert got.value(c.imbalance) == pytest.approx((0.75 - 2.25) / 3.0)
    assert got.value(c.deficit) == pytest.approx(-1.5 / 3)
    assert got.value(c.near_imbalance) == pytest.approx(-1.0)
    assert got.value(c.far_imbalance) == pytest.approx((0.75 - 2) / 2.75)
    assert got.value(c.far_deficit) == pytest.approx((0.75 - 2) / 3)


def test_slopes_by_hand():
    """e = -1, -2, -3 and t = -1, -3, -5: t = 2e + 1, so both slopes are 2 and t - e = e + 1 is all explained."""
    got = summed(Rollout((1,), (1, 2), (-1.0, -2.0), (-1.0, -3.0)), Rollout((1,), (3,), (-3.0,), (-5.0,)))
    assert got.value(c.slope) == pytest.approx(2.0)
    assert got.value(c.inverse_slope) == pytest.approx(2.0)
    assert got.value(c.explained) == pytest.approx(1.0)
    assert got.value(c.exponent) == pytest.approx(2.0)  # 1 - (2/3) / (-2/3)


def test_noise_moves_the_two_slopes_apart():
    """e = 0, -2 twice each, t = e ∓ 1 within each pair (and kept below 0): Var e 1, Cov 1, Var t 2."""
    got = summed(Rollout((1,), (1,) * 4, (-1.0, -1.0, -3.0, -3.0), (0.0, -2.0, -2.0, -4.0)))
    assert got.value(c.slope) == pytest.approx(1.0)
    assert got.value(c.inverse_slope) == pytest.approx(2.0)
    assert got.value(c.explained) == pytest.approx(0.0)


def test_blank_and_shifted_tokens_do_not_enter():
    trainer = tuple(-np.random.default_rng(0).exponential(1, 40))
    shifted = Rollout((1,), (1,) * 40, (-1.0, *trainer[:-1]), trainer)
    got = summed(Rollout((1,), (1, 2), (0.0, -1.0), (-3.0, -1.0)), shifted)
    assert got.tokens == 1
    assert got.value(c.deficit) == 0.0


def test_weights_balance_in_a_healthy_run(healthy):
    """E[exp(r)] = 1 whatever the drift: a law of the simulation that the checks rely on."""
    got = summed(*healthy(flips=0.05, age=2, update=0.1))
    estimate = got.estimate(c.deficit)
    assert estimate.low < 0 < estimate.high
    assert estimate.high - estimate.low < 0.01


@pytest.mark.parametrize("strength", [0.8, 0.9, 1.1, 1.25])
def test_the_temperature_is_told(look, faulty, strength):
    (ignored,) = look(TemperatureMismatch, faulty("trainer_temperature", strength))
    assert ignored.evidence["trainer's temperature over the engine's"] == pytest.approx(1 / strength, rel=0.06)
    (raw,) = look(TemperatureMismatch, faulty("raw_temperature", strength))
    assert raw.evidence["trainer's temperature over the engine's"] == pytest.approx(strength, rel=0.06)
    assert raw.invalidates


@pytest.mark.parametrize(
    ("recorded", "says"), [(0.8, "trainer seems to compute at 1"), (1.25, "engine seems to log before")]
)
def test_a_recorded_temperature_says_which_side_is_wrong(look, faulty, recorded, says):
    """The trainer is 1/0.8 times as hot: at a recorded 0.8 it computes at 1; at 1.25 the engine logs at 1."""
    rollouts = [dataclasses.replace(r, temperature=recorded) for r in faulty("trainer_temperature", 0.8)]
    (got,) = look(TemperatureMismatch, rollouts)
    assert says in got.fix
    assert got.evidence["recorded temperature"] == pytest.approx(recorded)


def test_the_side_that_truncates_is_told(look, faulty):
    (engine,) = look(SupportMismatch, faulty("trainer_support", 0.9, flips=0.0, age=0))
    assert engine.headline.startswith("the trainer spreads its probability over the whole vocabulary")
    assert engine.evidence["smallest kept mass (1 % of the affected tokens)"] == pytest.approx(0.9, abs=0.05)
    assert engine.evidence["recorded top_p"] == pytest.approx(0.9)
    (trainer,) = look(SupportMismatch, faulty("raw_support", 0.9))
    assert trainer.headline.startswith("the engine spreads its probability over the whole vocabulary")


@pytest.mark.parametrize(("name", "strength", "check"), [
    ("trainer_support", 0.9, TemperatureMismatch),
    ("raw_support", 0.9, TemperatureMismatch),
    ("trainer_temperature", 0.7, SupportMismatch),
    ("raw_temperature", 0.7, SupportMismatch),
    ("trainer_support", 0.8, WrongToken),
    ("likeliest_token", 0.3, SupportMismatch),
    ("likeliest_token", 0.3, TemperatureMismatch),
    ("trainer_temperature", 0.7, WrongToken),
    ("zero_sequences", 0.1, SupportMismatch),
    ("zero_sequences", 0.1, WrongToken),
    ("one_late", 1.0, WrongToken),
])  # fmt: skip
def test_each_fault_has_one_name(look, faulty, name, strength, check):
    assert look(check, faulty(name, strength)) == []


def test_the_likeliest_token_is_found_where_it_was_recorded(look, faulty, healthy):
    (got,) = look(WrongToken, faulty("likeliest_token", 0.1))
    changed = [
        (i, k)
        for i, (a, b) in enumerate(zip(healthy(), faulty("likeliest_token", 0.1), strict=True))
        for k, (x, y) in enumerate(zip(a.rollout_logprobs, b.rollout_logprobs, strict=True))
        if x != y
    ]
    assert len(set(got.where.positions) & set(changed)) >= 8


@pytest.mark.parametrize("check", [TemperatureMismatch, SupportMismatch, WrongToken])
@pytest.mark.parametrize("what", [{}, {"flips": 0.05}, {"age": 2, "update": 0.1}, {"top_p": 0.9, "temperature": 0.7}])
def test_healthy(look, healthy, check, what):
    assert look(check, healthy(**what)) == []


def sharpened(age, beta, count=64, version_lag=0):
    """Rollouts of a coin with p(heads) = .9, scored at weights that are `beta` times as sharp; a version per step."""
    rng = np.random.default_rng(age)
    heads = 0.9**beta / (0.9**beta + 0.1**beta)
    for i in range(count):
        toss = rng.random(40) < 0.9
        yield Rollout(
            (i,),
            tuple(toss.astype(int).tolist()),
            tuple(np.where(toss, log(0.9), log(0.1)).tolist()),
            tuple(np.where(toss, log(heads), log(1 - heads)).tolist()),
            step=10 + age,
            group_id=i,
            weight_versions=(10 - version_lag,) * 40,
        )


@pytest.mark.parametrize("lag", [0, 3])
def test_a_policy_that_sharpens_meanwhile_is_not_at_another_temperature(lag):
    def found(fresh, stale):
        check = TemperatureMismatch()
        for age, beta in ((0, fresh), (2, stale)):
            check.update(View(chunk_of(list(sharpened(age, beta, version_lag=lag)))))
        return [f.name for f in check.findings(Facts())]

    assert found(1.0, 1.3) == []
    assert found(1.0, 0.7) == []
    assert found(1.3, 1.3) == ["temperature_mismatch"]
    assert found(0.7, 0.7) == ["temperature_mismatch"]


def test_without_versions_a_slope_speaks_for_itself():
    check = TemperatureMismatch()
    check.update(View(chunk_of([dataclasses.replace(r, weight_versions=None) for r in sharpened(2, 1.3)])))
    assert [f.name for f in check.findings(Facts())] == ["temperature_mismatch"]

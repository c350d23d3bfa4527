"""Tokens that two policies see wholly differently, weights that waste the data, pulls by the advantage's sign."""

import math

import numpy as np
import pytest

from holdfast.audit.judge.checks.drift.heavy_tails import HeavyTails
from holdfast.audit.judge.checks.drift.signed_skew import SignedSkew
from holdfast.types import Rollout


def rollout(i, ratios, engine=-0.5, **more):
    n = len(ratios)
    return Rollout((i,), tuple(range(n)), (engine,) * n, tuple(engine + float(r) for r in ratios), **more)


def test_tokens_beyond_twenty(look):
    """Of 100 tokens one has a ratio of e^-4: 1 %, and at p = e^-.5 = .61 it is a confident disagreement too."""
    (got,) = look(HeavyTails, [rollout(i, [0.01] * 99 + [-4.0]) for i in range(64)])
    assert got.severity == "critical"
    assert got.headline.startswith(
        "at 1.00% of the tokens the two probabilities differ by a factor beyond 20: one in 100"
    )
    assert got.evidence["share beyond 20"].value == pytest.approx(0.01)
    assert got.evidence["share confident disagreement"].value == pytest.approx(0.01)
    assert got.where.positions[0][1] == 99


def test_the_engine_was_sure(look):
    """A ratio of e^-2.5 = .08 is not beyond 20."""
    runs = [rollout(i, [0.01] * 499 + [-2.5]) for i in range(64)]
    (got,) = look(HeavyTails, runs)
    assert got.headline.startswith("at 0.20% of the tokens the engine was sure")
    unsure = [rollout(i, [0.01] * 499 + [-2.5], engine=-1.0) for i in range(64)]
    assert look(HeavyTails, unsure) == []


def test_weights_that_waste_the_data(look):
    """Weights e^(.9 E) with E exponential have Pareto's k of .9 and no variance; seen at log p = -8."""
    rng = np.random.default_rng(0)
    runs = [rollout(i, 0.9 * rng.exponential(size=200), engine=-8.0) for i in range(64)]
    weights = np.exp(np.concatenate([np.subtract(r.trainer_logprobs, r.rollout_logprobs) for r in runs]))
    (got,) = look(HeavyTails, runs)
    share = weights.sum() ** 2 / len(weights) / np.square(weights).sum()
    assert got.evidence["effective share of the tokens"].value == pytest.approx(share, rel=1e-3)
    assert got.evidence["Pareto's k of token weights"].value == pytest.approx(0.9, abs=0.15)


def test_a_light_tail_of_large_weights_is_no_heavy_one(look):
    """Two weights as often, e^1 and e^-1: effective share (cosh 1)² / cosh 2 = .63, and no tail at all."""
    assert look(HeavyTails, [rollout(i, [1.0, -1.0] * 50, engine=-3.0) for i in range(64)]) == []


@pytest.mark.parametrize("strength", [0.01, 0.03])
def test_wild_tokens(look, faulty, strength):
    (got,) = look(HeavyTails, faulty("wild_tokens", strength, flips=0.0, age=0))
    assert got.kind == "drift"
    assert got.where.positions


def test_healthy_mixtures_of_experts_have_tails_that_are_none(look, healthy):
    assert look(HeavyTails, healthy(flips=0.05, flip_noise=0.8)) == []


def paid(i, ratio, advantage, tokens=100, **more):
    return rollout(i, [ratio] * tokens, advantages=(advantage,) * tokens, **more)


def test_the_pull_by_sign_in_numbers(look):
    """w - 1 = e^.02 - 1 = .0202 where A = 2, and e^-.02 - 1 = -.0198 where A = -1."""
    fresh = {"weight_versions": (3,) * 100, "step": 4}
    runs = [paid(i, 0.02, 2.0, **fresh) for i in range(40)] + [paid(i, -0.02, -1.0, **fresh) for i in range(40, 80)]
    (got,) = look(SignedSkew, runs)
    assert got.severity == "warning"
    assert got.evidence["skew over mean |A|, A positive"].value == pytest.approx(-math.expm1(0.02), rel=1e-4)
    assert got.evidence["skew over mean |A|, A negative"].value == pytest.approx(math.expm1(-0.02), rel=1e-4)
    assert "where the advantage is positive, the trainer gives the sampled tokens a higher probability" in got.headline
    assert "by 2.0% of the mean advantage" in got.headline


def test_what_updates_do_needs_more(look):
    """Rollouts that say no version may be some updates old; .02 is then nothing, .06 is."""
    for ratio, severities in ((0.02, []), (0.06, ["warning"])):
        runs = [paid(i, ratio, 1.0) for i in range(40)] + [paid(i, -ratio, -1.0) for i in range(40, 80)]
        assert [f.severity for f in look(SignedSkew, runs)] == severities


def test_the_other_direction(look):
    fresh = {"weight_versions": (3,) * 100, "step": 4}
    (got,) = look(SignedSkew, [paid(i, 0.02, -1.0, **fresh) for i in range(80)])
    assert "where the advantage is negative, the trainer gives the sampled tokens a higher probability" in got.headline


def test_drift_alone_has_no_sign(look, healthy):
    assert look(SignedSkew, healthy()) == []
    assert look(SignedSkew, healthy(flips=0.05, flip_noise=0.8, age=0)) == []


def test_rewards_that_follow_the_engines_errors(look, faulty):
    (got,) = look(SignedSkew, faulty("errors_cost", 1.0, flips=0.05, flip_noise=0.8, age=0))
    assert got.evidence["skew over mean |A|, A negative"].high < 0

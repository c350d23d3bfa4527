"""Markov's inequality against what an engine logged."""

import math

import numpy as np
import pytest

from holdfast.audit.judge.checks.data.impossible_ratios import ImpossibleRatios, _evidence
from holdfast.types import Rollout


def test_chernoff():
    assert _evidence(8, 8.0) == 0
    assert _evidence(3, 8.0) == 0  # fewer than expected prove nothing
    assert _evidence(30, 5.0) == pytest.approx(30 * math.log(6) - 25)


def test_values_that_the_engine_did_not_sample_with(look, faulty, healthy):
    (got,) = look(ImpossibleRatios, faulty("wrong_at_the_end", 0.1))
    assert got.severity == "critical" and got.kind == "data"
    assert "the engine's log-probabilities are wrong" in got.headline
    assert "among the last 3 tokens of responses cut by the length limit" in got.headline
    assert {p for _, p in got.where.positions} and got.invalidates
    assert look(ImpossibleRatios, healthy()) == []


def test_where_they_stand_is_said_only_where_it_is_so(look):
    def run(places, reason):
        for i in range(40):
            trainer = -np.random.default_rng(i).exponential(0.5, 50)
            engine = trainer.copy()
            engine[places[i % len(places)]] = -16.0
            yield Rollout((i,), (3,) * 50, tuple(engine.tolist()), tuple(trainer.tolist()), finish_reason=reason)

    (got,) = look(ImpossibleRatios, list(run([49], "stop")))
    assert ", nearly all the last of a response:" in got.headline
    (got,) = look(ImpossibleRatios, list(run([5, 20, 30], "length")))
    assert "nearly all" not in got.headline


def test_a_trainer_that_excludes_what_was_sampled_proves_nothing(look):
    run = [Rollout((i,), (3,) * 50, (-0.1,) * 50, (-12.0,) * 50) for i in range(40)]
    assert look(ImpossibleRatios, run) == []


def test_as_many_as_sampling_allows(look):
    """A policy that samples at p what its trainer takes for certain: log-ratio 7 at a rate of e^-7."""
    rng = np.random.default_rng(0)
    run = []
    for i in range(200):
        rare = rng.random(500) < math.exp(-7.0)
        engine = np.where(rare, -7.0, math.log1p(-math.exp(-7.0)))
        trainer = np.where(rare, -1e-3, math.log1p(-math.exp(-1e-3)))
        run.append(Rollout((i,), (3,) * 500, tuple(engine.tolist()), tuple(trainer.tolist())))
    assert look(ImpossibleRatios, run) == []


def test_shifted_sequences_are_left_to_their_own_check(look, faulty):
    assert look(ImpossibleRatios, faulty("one_late", 1.0)) == []

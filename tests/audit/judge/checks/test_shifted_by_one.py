"""Log-probabilities beside their token."""

import numpy as np
import pytest

from holdfast.audit.judge.checks.data.shifted_by_one import ShiftedByOne
from holdfast.types import Rollout


def run(shift, noise=0.05, length=40, count=4, seed=0):
    rng, out = np.random.default_rng(seed), []
    for _ in range(count):
        trainer = -rng.exponential(1, length)
        engine = np.roll(trainer + noise * rng.normal(size=length), shift)
        out.append(Rollout((1,), tuple(range(length)), tuple(np.minimum(engine, 0).tolist()), tuple(trainer.tolist())))
    return out


@pytest.mark.parametrize(("shift", "word"), [(1, "late"), (-1, "early")])
def test_both_directions(look, shift, word):
    (got,) = look(ShiftedByOne, [*run(shift), *run(0)])
    assert got.evidence["sequences"] == 4
    assert got.evidence["share of sequences"] == 0.5
    assert got.evidence[f"one {word}"] == 4
    assert f"one token {word}" in got.headline
    assert got.where.sequences == (0, 1, 2, 3)
    assert got.invalidates


def test_heavy_drift_in_place_is_no_shift(look):
    assert look(ShiftedByOne, run(0, noise=0.8, count=100)) == []


def test_two_places_are_not_one(look):
    assert look(ShiftedByOne, run(2)) == []


def test_numbers_of_another_sequence_are_not_a_shift(look):
    rolled = [Rollout(a.prompt_ids, a.response_ids, b.rollout_logprobs, a.trainer_logprobs)
              for a, b in zip(run(0, count=50), run(0, count=50, seed=1), strict=True)]  # fmt: skip
    assert look(ShiftedByOne, rolled) == []


def test_sequences_do_not_run_into_each_other(look):
    """A sequence of 17 tokens has 16 pairs of neighbours; with one fewer it is too short to tell."""
    assert len(look(ShiftedByOne, run(1, length=17, noise=0))) == 1
    assert look(ShiftedByOne, run(1, length=16, noise=0)) == []


def test_two_sequences_are_too_few(look):
    assert look(ShiftedByOne, run(1, count=2)) == []


def test_in_a_simulated_run(look, faulty, healthy):
    assert look(ShiftedByOne, healthy()) == []
    (got,) = look(ShiftedByOne, faulty("one_early", 0.1))
    assert got.evidence["one late"] == 0
    assert 0.05 < got.evidence["share of sequences"] < 0.15

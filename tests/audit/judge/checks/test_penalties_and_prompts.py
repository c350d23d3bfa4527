"""What one side does to logits, digits or prompts that the other does not."""

import dataclasses

import numpy as np
import pytest

from holdfast.audit.judge.auditor import Auditor
from holdfast.audit.judge.checks.data.coarse_logprobs import CoarseLogprobs
from holdfast.audit.judge.checks.data.doubled_token import DoubledToken
from holdfast.audit.judge.checks.data.repetition_penalty import RepetitionPenalty
from holdfast.audit.measure.repeats import repeats_of
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import chunk_of
from holdfast.audit.read.reading import Reading
from holdfast.audit.simulate import FAULTS
from holdfast.types import Rollout


def test_repeats_look_at_the_prompt_and_at_what_came_before():
    chunk = chunk_of([Rollout((5, 6), (7, 5, 7, 8)), Rollout((), (7, 6, 6)), Rollout((9,), (9, 9))])
    found = repeats_of(View(chunk))
    assert found.sequences == 3
    assert found.seen.tolist() == [False, True, True, False, False, False, True, True, True]
    assert repeats_of(View(chunk), most=5).seen.tolist() == [False, True, True, False, False, False, True]


def drifting(i, new, repeated, tokens=60, vocabulary=20):
    """A rollout with these mean log-ratios on new and on repeated ids, and noise of .02."""
    rng = np.random.default_rng(i)
    ids = rng.integers(0, vocabulary, tokens)
    seen = np.array([ids[k] in ids[:k] for k in range(tokens)])
    ratio = np.where(seen, repeated, new) + 0.02 * rng.normal(size=tokens)
    return Rollout((100 + i,), tuple(ids.tolist()), (-2.0,) * tokens, tuple((-2 + ratio).tolist()))


@pytest.mark.parametrize("strength", [1.05, 1.3])
def test_a_penalty_of_the_engine(look, faulty, strength):
    (got,) = look(RepetitionPenalty, faulty("penalised_engine", strength))
    assert got.kind == "data"
    assert got.severity == "critical"
    assert got.invalidates
    assert got.headline.startswith("the engine penalises tokens that are already in the context")
    assert got.evidence["mean log ratio, repeated tokens"] > 0 > got.evidence["mean log ratio, new tokens"]
    assert "repetition_penalty=1.0" in got.settings["TRL"]
    assert "A mask or a weight does not mend it" in got.fix


def test_a_penalty_by_numbers(look):
    (got,) = look(RepetitionPenalty, [drifting(i, -0.1, 0.2) for i in range(60)])
    # difference .3 over the mean of |r|, half each: (.1 + .2) / 2, or .15: 2
    assert got.evidence["difference over the mean |log ratio|"].value == pytest.approx(2, rel=0.05)
    assert got.evidence["mean log ratio, new tokens"] == pytest.approx(-0.1, abs=0.005)
    (got,) = look(RepetitionPenalty, [drifting(i, 0.1, -0.2) for i in range(60)])
    assert got.headline.startswith("the trainer penalises")


@pytest.mark.slow
def test_what_is_no_penalty(look, healthy, faulty):
    assert look(RepetitionPenalty, healthy()) == []
    assert look(RepetitionPenalty, [drifting(i, -0.1, -0.1) for i in range(60)]) == []
    assert look(RepetitionPenalty, [drifting(i, -0.002, 0.002) for i in range(60)]) == []  # of no size
    assert look(RepetitionPenalty, [drifting(i, -0.1, 0.2) for i in range(10)]) == []  # too few
    for name, strength in (("trainer_temperature", 0.7), ("trainer_support", 0.8), ("drift_level", 1.0)):
        assert look(RepetitionPenalty, faulty(name, strength, age=0)) == []


def test_bfloat16(look, faulty, healthy):
    (got,) = look(CoarseLogprobs, faulty("in_bfloat16", 1.0))
    assert got.severity == "warning"
    assert got.headline.startswith("the trainer's log-probabilities are rounded (bfloat16)")
    assert look(CoarseLogprobs, healthy()) == []
    assert look(CoarseLogprobs, faulty("in_bfloat16", 0.5)) == []


@pytest.mark.parametrize(("decimals", "severity"), [(1.0, "warning"), (2.0, "warning"), (3.0, "info")])
def test_decimals(look, faulty, decimals, severity):
    (got,) = look(CoarseLogprobs, faulty("rounded", decimals))
    assert got.severity == severity
    assert f"the engine's log-probabilities are rounded ({decimals:.0f} decimal" in got.headline
    # Rounded to units of u, a value is off by u / 4 on average.
    assert got.evidence["mean rounding of the engine's"] == pytest.approx(0.25 * 10**-decimals)


def test_both_sides_and_a_rounding_that_the_reader_knows_of(faulty):
    run = FAULTS["in_bfloat16"].apply(faulty("rounded", 2.0), 1.0, np.random.default_rng(0))

    def audit(resolution):
        auditor = Auditor(Reading(logprob_resolution=resolution), checks=[CoarseLogprobs()])
        auditor.feed(chunk_of(run))
        return auditor.result().findings

    (got,) = audit(0.0)
    assert "the engine's and the trainer's log-probabilities are rounded (2 decimals and bfloat16)" in got.headline
    assert audit(0.001) == ()


def test_a_doubled_special_token(look, faulty, healthy):
    (got,) = look(DoubledToken, faulty("doubled_start", 1.0))
    assert got.severity == "warning"
    assert "begin with token 64 twice" in got.headline
    assert look(DoubledToken, faulty("doubled_start", 0.5)) == []
    assert look(DoubledToken, healthy()) == []
    padded = [dataclasses.replace(r, prompt_ids=(0, 0, 0, *r.prompt_ids)) for r in healthy()]
    assert look(DoubledToken, padded) == []
    assert look(DoubledToken, faulty("doubled_start", 1.0)[:56]) == []  # seven prompts

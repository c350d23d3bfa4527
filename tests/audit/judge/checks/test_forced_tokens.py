"""Tokens that sampling cannot explain: Chernoff's bound against the exact binomial tail, and where they stand."""

import math

import pytest
from scipy import stats

from holdfast.audit.judge.checks.data.forced_tokens import EVIDENCE, FEWEST, LIMITS, ForcedTokens
from holdfast.types import Rollout

ORDINARY = [Rollout((i,), tuple(range(100)), (-0.5,) * 100) for i in range(100)]


def forced(count, logprob, **more):
    return [Rollout((i,), (1, 999), (-0.5, logprob), **more) for i in range(count)]


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("own", [200, 10_000, 1_000_000])
def test_what_is_reported_is_beyond_chance(limit, own):
    """The smallest number that counts has a binomial tail below e^-EVIDENCE."""
    expected = own * math.exp(limit)
    k = next(k for k in range(FEWEST, 10**6) if k > expected and k * math.log(k / expected) - k + expected > EVIDENCE)
    assert stats.binom.logsf(k - 1, own, math.exp(limit)) < -EVIDENCE


def test_a_rare_token_that_comes_too_often(look):
    """In 10,060 tokens an id is below e^-7 at most 9.2 times on average: 30 give 30 log(30/9.2) - 30 + 9.2 = 14.7 < 21,
    and 40 give 40 log(40/9.2) - 40 + 9.2 = 28.0."""
    assert look(ForcedTokens, [*ORDINARY, *forced(30, -8.0)]) == []
    (got,) = look(ForcedTokens, [*ORDINARY, *forced(40, -8.0)])
    assert got.evidence["token id"] == 999
    assert got.evidence["occurrences"] == 40
    assert got.evidence["of them last in a response"] == 40
    assert got.where.positions[0][1] == 1
    assert not got.invalidates


def test_rarer_tokens_need_fewer(look):
    """Below e^-10 an id is expected 0.46 times in 10,020 tokens: 10 give 10 log(10/0.46) - 10 + 0.46 = 21.3."""
    assert len(look(ForcedTokens, [*ORDINARY, *forced(10, -10.5)])) == 1
    assert look(ForcedTokens, [*ORDINARY, *forced(8, -10.5)]) == []


def test_tokens_outside_the_mask_are_no_error(look):
    assert look(ForcedTokens, [*ORDINARY, *forced(40, -8.0, response_mask=(True, False))]) == []


def test_exact_zeros_on_one_id(look):
    (got,) = look(ForcedTokens, [*ORDINARY, *forced(8, 0.0, trainer_logprobs=(-0.5, -4.0))])
    assert "exactly 0" in got.headline
    assert (got.evidence["token id"], got.evidence["occurrences"]) == (999, 8)
    assert got.severity == "critical"
    assert look(ForcedTokens, [*ORDINARY, *forced(7, 0.0, trainer_logprobs=(-0.5, -4.0))]) == []


def test_simulated(look, healthy, faulty):
    assert look(ForcedTokens, healthy()) == []
    (got,) = look(ForcedTokens, faulty("forced_end", 0.3))
    assert got.evidence["ids"] == "7"

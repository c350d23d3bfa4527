"""Values that no log-probability has."""

import math

import pytest

from holdfast.audit.judge.checks.data.invalid_logprobs import InvalidLogprobs
from holdfast.types import Rollout


@pytest.mark.parametrize(
    ("value", "kind"), [(math.nan, "NaN"), (math.inf, "infinite"), (-math.inf, "infinite"), (0.002, "positive")]
)
def test_each_kind_is_counted_once_where_it_is(look, value, kind):
    (got,) = look(InvalidLogprobs, [Rollout((1,), (1, 2), (-1.0, -1.0)), Rollout((1,), (1, 2), (-1.0, value))])
    assert got.evidence[f"rollout_logprobs {kind}"] == 1
    assert got.where.positions[0] == (1, 1)
    assert got.evidence["share of own tokens"] >= 0.25
    assert got.invalidates


def test_rounding_and_tokens_of_others_pass(look):
    rollout = Rollout((1,), (1, 2), (0.0009, math.nan), (-1.0, 3.0), response_mask=(True, False))
    assert look(InvalidLogprobs, [rollout]) == []


def test_a_field_that_was_not_given_is_not_nan(look):
    assert look(InvalidLogprobs, [Rollout((1,), (1,), (-1.0,), (-1.0,)), Rollout((1,), (1,), (-1.0,))]) == []


def test_one_in_a_thousand_does_not_withhold_the_rest(look):
    good = Rollout((1,), (1,) * 1000, (-1.0,) * 1000)
    bad = Rollout((1,), (1,), (math.nan,))
    (got,) = look(InvalidLogprobs, [good, bad, good])
    assert not got.invalidates

"""The bounds of an engine's likeliest tokens in a rollout: what can be is taken, what cannot be is named."""

import math

import pytest

from holdfast.errors import DataError
from holdfast.types import Rollout

GOOD = {"kl_lower": (0.0, 0.3), "tv_lower": (0.0, 0.25), "tv_upper": (1.0, 0.25)}


def rollout(**changes):
    return Rollout(prompt_ids=(1,), response_ids=(2, 3), **(GOOD | changes))


def test_bounds_at_their_edges_are_taken():
    assert rollout().tv_upper == (1.0, 0.25)
    assert rollout(kl_lower=(1e30, 0.0)).kl_lower == (1e30, 0.0)
    assert rollout(tv_lower=(0.0, 0.25 + 1e-12)).tv_upper[1] == 0.25, "equal in float32, as files hold them"
    assert Rollout((1,), (), kl_lower=(), tv_lower=(), tv_upper=()).kl_lower == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kl_lower": (0.0, -1e-9)}, r"kl_lower is -1e-09 at response token 1, allowed are finite numbers from 0: "),
        ({"kl_lower": (math.inf, 0.0)}, "kl_lower is inf at response token 0"),
        ({"kl_lower": (math.nan, 0.0)}, "kl_lower is nan at response token 0"),
        ({"tv_lower": (-0.5, 0.0)}, "tv_lower is -0.5 at response token 0, allowed are numbers from 0 to 1: "),
        ({"tv_lower": (1.5, 0.0)}, "tv_lower is 1.5 at response token 0"),
        ({"tv_upper": (1.5, 0.25)}, "tv_upper is 1.5 at response token 0, allowed are numbers from tv_lower to 1: "),
        ({"tv_upper": (1.0, 0.2)}, "tv_upper is 0.2 at response token 1"),
        ({"tv_upper": (math.nan, 0.25)}, "tv_upper is nan at response token 0"),
        (
            {"tv_lower": (0.0,)},
            "2 response tokens .* kl_lower: 2, tv_lower: 1, tv_upper: 2, response_mask: 2: the",
        ),
        ({"tv_upper": None}, "kl_lower: 2, tv_lower: 2, tv_upper: none, .*: the three come together, one number per"),
        ({"response_mask": (True,)}, "tv_upper: 2, response_mask: 1: "),
    ],
)
def test_bounds_that_cannot_be_are_named_with_what_is_allowed(changes, words):
    with pytest.raises(DataError, match=words):
        rollout(**changes)


def test_what_stands_at_tokens_that_the_policy_did_not_sample_is_not_judged():
    strange = {"kl_lower": (0.0, math.nan), "tv_lower": (0.0, -1.0), "tv_upper": (1.0, 7.0)}
    assert rollout(response_mask=(True, False), **strange).tv_upper == (1.0, 7.0)
    with pytest.raises(DataError, match="kl_lower is nan at response token 1"):
        rollout(response_mask=(True, True), **strange)

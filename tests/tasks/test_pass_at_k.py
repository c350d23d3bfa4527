"""pass@k against counting all subsets, and against the probability that it estimates."""

from itertools import combinations
from math import comb

import pytest

from holdfast.tasks.pass_at_k import mean_pass_at_k, pass_at_k, powers_of_two


@pytest.mark.parametrize("samples", range(1, 8))
def test_is_the_share_of_subsets_with_a_right_response(samples):
    for right in range(samples + 1):
        for k in range(1, samples + 1):
            subsets = list(combinations([i < right for i in range(samples)], k))
            assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


def test_golden():
    # n = 4, c = 1: one response is the right one, the other two of three miss it: 1 - C(3,2)/C(4,2) = 1 - 3/6.
    assert pass_at_k(4, 1, 2) == 0.5
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3, abs=1e-15)
    assert pass_at_k(5, 0, 5) == 0.0 and pass_at_k(5, 1, 5) == 1.0
    assert mean_pass_at_k([1, 0, 4], 4, 2) == pytest.approx((0.5 + 0.0 + 1.0) / 3)


def test_has_no_bias():
    """E over c ~ Binomial(n, p) is 1 - (1 - p)^k, exactly; the plug-in 1 - (1 - c/n)^k is not."""
    samples, p, k = 6, 0.3, 3
    weight = [comb(samples, c) * p**c * (1 - p) ** (samples - c) for c in range(samples + 1)]
    expected = sum(w * pass_at_k(samples, c, k) for c, w in enumerate(weight))
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12)
    naive = sum(w * (1 - (1 - c / samples) ** k) for c, w in enumerate(weight))
    assert abs(naive - (1 - (1 - p) ** k)) > 0.03


def test_what_is_reported():
    assert [powers_of_two(n) for n in (1, 2, 3, 8, 10)] == [[], [2], [2, 3], [2, 4, 8], [2, 4, 8, 10]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((4, 5, 1), "right = 5"),
        ((4, -1, 1), "right = -1"),
        ((4, 2, 5), "k = 5.*at least k samples"),
        ((4, 2, 0), "k = 0"),
    ],
)
def test_impossible_numbers(arguments, words):
    with pytest.raises(ValueError, match=words):
        pass_at_k(*arguments)

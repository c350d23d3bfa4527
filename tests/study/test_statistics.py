"""Intervals over seeds against sums written out, another way of counting, and coverage on data with a known mean."""

import itertools
import math
import random
import statistics
from collections import Counter

import pytest

from holdfast.study.statistics import (
    FEWEST,
    compare,
    expanded_tail,
    figure,
    interval,
    paired,
    quantile,
    resampled_means,
    seeds_needed,
    sentence,
)

EIGHT = [0.12, 0.30, -0.05, 0.21, 0.18, 0.02, 0.25, 0.11]


@pytest.mark.parametrize("values", [[0.0, 1.0], [0.5, 0.1, 0.4], [3.0, 1.0, 1.0, 7.0], [0.1, 0.2, 0.3, 0.4, 0.9]])
def test_the_counted_bootstrap_is_every_sample_once(values):
    n = len(values)
    every = Counter(round(sum(sample) / n, 9) for sample in itertools.product(values, repeat=n))
    counted: Counter[float] = Counter()
    for mean, weight in resampled_means(values):
        counted[round(mean, 9)] += weight
    assert counted == pytest.approx({mean: times / n**n for mean, times in every.items()})
    assert [mean for mean, _ in resampled_means(values)] == sorted(mean for mean, _ in resampled_means(values))


def test_many_seeds_are_drawn_and_agree_with_the_normal_limit():
    values = [random.Random(1).gauss(0, 1) for _ in range(40)]
    drawn = resampled_means(values)
    assert math.fsum(weight for _, weight in drawn) == pytest.approx(1)
    spread = statistics.pstdev(values) / math.sqrt(40)
    assert quantile(drawn, 0.975) == pytest.approx(statistics.fmean(values) + 1.96 * spread, abs=0.15 * spread)
    assert drawn == resampled_means(values), "the same draws every time"


def test_the_tail_is_that_of_student_widened_for_the_spread_of_a_sample():
    # n = 8: t(.975, 7) = 2.3646; sqrt(8/7) = 1.0690; Phi(-2.5279) = .00574
    assert expanded_tail(8) == pytest.approx(0.00574, abs=5e-5)
    # n = 100: t(.975, 99) = 1.9842; Phi(-1.9842 * 1.00504) = Phi(-1.9942) = .02306
    assert expanded_tail(100) == pytest.approx(0.02306, abs=5e-5)


def test_an_interval_of_eight_seeds_is_the_quantile_of_every_sample():
    """Against a count of sums on a grid: values times 100 are whole, so the sums of eight have a finite table."""
    sums = Counter({0: 1})
    for _ in range(8):
        sums = convolved(sums, [round(100 * value) for value in EIGHT])
    ordered, reached, low, high = sorted(sums), 0, None, None
    for total in ordered:
        reached += sums[total]
        if low is None and reached / 8**8 >= expanded_tail(8):
            low = total / 800
        if high is None and reached / 8**8 >= 1 - expanded_tail(8):
            high = total / 800
    found = interval(EIGHT)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.mean == pytest.approx(0.1425) and found.low < 0.1425 < found.high


def convolved(sums, values):
    out = Counter()
    for total, times in sums.items():
        for value in values:
            out[total + value] += times
    return out


@pytest.mark.parametrize("n", [6, 8])
@pytest.mark.slow
def test_it_covers_the_mean_about_as_often_as_it_says(n):
    draw = random.Random(0)
    inside = 0
    for _ in range(200):
        found = interval([draw.gauss(0.3, 1) for _ in range(n)])
        inside += found.low <= 0.3 <= found.high
    # 95 % of 200 are 190, with a standard deviation of 3.1; a plain percentile interval covers about 173
    assert 181 <= inside <= 199


def test_fewer_seeds_than_could_ever_cover_have_no_interval():
    found = interval([0.1] * (FEWEST - 1))
    assert found.low is None and found.high is None and found.mean == pytest.approx(0.1)
    verdict = compare(dict(enumerate([0.9] * 5)), dict(enumerate([0.1] * 5)))
    assert verdict.state == "too few seeds"
    assert sentence("a", "b", verdict) == "a and b differ by +.80 on 5 seeds: too few to judge (6 are needed)."
    assert "no shared seed" in sentence("a", "b", compare({1: 0.5}, {2: 0.5}))


def test_only_shared_seeds_are_compared_and_each_with_itself():
    assert paired({1: 0.5, 2: 0.75, 3: 1.0}, {3: 0.25, 2: 0.5, 9: 4.0}) == [0.25, 0.75]
    # seeds differ by a lot, the two configurations by .1 on each: unpaired they would not be separated
    hard = {seed: seed / 10 for seed in range(8)}
    easier = {seed: value + 0.1 + 0.01 * (seed % 2) for seed, value in hard.items()}
    verdict = compare(easier, hard)
    assert verdict.state == "first" and verdict.difference.mean == pytest.approx(0.105)
    assert compare(hard, easier).state == "second"
    assert compare(easier, hard, lowest=True).state == "second"


def test_seeds_needed_is_the_power_formula_by_hand():
    # mean .1, sd .2 over 8: ((1.95996 + .84162) * 2)^2 = 31.4
    spread = 0.2 * math.sqrt(7 / 8)
    values = [0.1 + spread, 0.1 - spread] * 4
    assert statistics.stdev(values) == pytest.approx(0.2)
    assert seeds_needed(values) == 32
    assert seeds_needed([1.0, -1.0]) is None and seeds_needed([1.0, -0.99] * 4) is None


def test_a_sentence_is_made_from_the_interval():
    ahead = compare(dict(enumerate(EIGHT)), dict.fromkeys(range(8), 0.0))
    low, high = ahead.difference.low, ahead.difference.high
    assert sentence("A", "B", ahead) == f"A beats B by .14 ({figure(low)} to {figure(high)}) on 8 seeds."
    behind = compare(dict.fromkeys(range(8), 0.0), dict(enumerate(EIGHT)))
    assert sentence("B", "A", behind) == sentence("A", "B", ahead)
    mixed = compare(dict(enumerate([0.3, -0.2, 0.2, -0.1, 0.2, -0.1])), dict.fromkeys(range(6), 0.0))
    assert mixed.state == "not separated"
    text = sentence("A", "B", mixed)
    assert text.startswith("A and B are not separated: +.05 (-.") and f"about {mixed.needed} seeds" in text
    same = compare(dict.fromkeys(range(6), 0.5), dict.fromkeys(range(6), 0.5))
    assert same.state == "not separated" and "more than 1000 seeds would be needed" in sentence("A", "B", same)


def test_what_rounding_leaves_of_zero_has_no_sign():
    # differences of rounded rewards: the mean at the upper quantile is 0 but for the last bit
    first = [0.125, 0.07812, 0.03906, 0.07031, 0.03125, 0.1094, 0.08594, 0.04688]
    second = [0.07031, 0.375, 0.1328, 0.1797, 0.1172, 0.1094, 0.09375, 0.1094]
    found = compare(dict(enumerate(first)), dict(enumerate(second)))
    assert found.difference.high == 0.0 and sentence("A", "B", found).startswith(
        "A and B are not separated: -.08 (-.17 to .00) on 8 seeds"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.125, ".12"),
        (-0.5, "-.50"),
        (1.5, "1.50"),
        (0.0, ".00"),
        (0.0042, ".0042"),
        (-12.0, "-12.00"),
        (0.999, "1.00"),
    ],
)
def test_figures_are_short(value, text):
    assert figure(value) == text

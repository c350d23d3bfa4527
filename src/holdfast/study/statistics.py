"""Differences over shared seeds: their bootstrap interval, the seeds that would separate them, and the sentence.

One way for all comparisons: d_s = first - second on each seed s that both have, the mean of d, and an interval by the
bootstrap over seeds. A percentile interval of a mean is too narrow for a handful of seeds; it is expanded as in
Hesterberg, "What Teachers Should Know About the Bootstrap" (2015), section 5: the quantiles are taken at
Phi(-sqrt(n/(n-1)) t) instead of (1 - level)/2, t the quantile of Student's distribution with n - 1 degrees of freedom.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from holdfast.audit.measure.contrast import student_quantile

LEVEL = 0.95
FEWEST = 6
"""Seeds from which a comparison is judged: no resampled mean leaves the range of the seeds, and that range misses
their median with probability 2^(1-n), which is 6 % with five seeds and 3 % with six."""
MOST_SEEDS = 1000
"""Beyond it the seeds needed are not counted."""
ROUNDING = 1e-12
"""Of the largest difference: what a mean that is zero can be off by."""
_ENUMERATED = 9
_DRAWS = 20_000
_POWER = 0.8


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and where it lies; `low` and `high` are None below `FEWEST` seeds."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class Verdict:
    """What a comparison says: `better` names who is ahead, where the interval leaves zero out."""

    state: Literal["first", "second", "not separated", "too few seeds"]
    difference: Interval
    needed: int | None = None


def interval(values: Sequence[float]) -> Interval:
    """The mean of one number per seed with its expanded percentile interval."""
    n = len(values)
    if n == 0:
        return Interval(math.nan, None, None, 0)
    mean = statistics.fmean(values)
    if n < FEWEST:
        return Interval(mean, None, None, n)
    if max(values) == min(values):
        return Interval(mean, values[0], values[0], n)
    tail = expanded_tail(n)
    means = resampled_means(values)
    low, high = (_cleared(quantile(means, share), values) for share in (tail, 1 - tail))
    return Interval(mean, low, high, n)


def _cleared(limit: float, values: Sequence[float]) -> float:
    """Zero instead of what rounding leaves of it: its sign would decide."""
    return limit if abs(limit) > ROUNDING * max(map(abs, values)) else 0.0


def expanded_tail(n: int) -> float:
    """The share left out at each end: Phi(-sqrt(n/(n-1)) t), t Student's quantile at n - 1 degrees of freedom."""
    t = student_quantile((1 + LEVEL) / 2, n - 1)
    return statistics.NormalDist().cdf(-math.sqrt(n / (n - 1)) * t)


def resampled_means(values: Sequence[float]) -> list[tuple[float, float]]:
    """(mean, probability) of samples of n from n values with replacement, means rising.

    Up to nine values every sample is counted, n!/(k_1! ... k_n!) / n^n each; beyond, 20,000 are drawn with seed 0.
    """
    n = len(values)
    if n > _ENUMERATED:
        draw = random.Random(0)
        means = sorted(sum(values[int(draw.random() * n)] for _ in range(n)) / n for _ in range(_DRAWS))
        return [(mean, 1 / _DRAWS) for mean in means]
    found: list[tuple[float, float]] = []
    total = math.factorial(n)
    for sample in itertools.combinations_with_replacement(range(n), n):
        ways = total
        for _, repeats in itertools.groupby(sample):
            ways //= math.factorial(len(list(repeats)))
        found.append((math.fsum(values[i] for i in sample) / n, ways / n**n))
    return sorted(found)


def quantile(weighted: Sequence[tuple[float, float]], share: float) -> float:
    """The smallest value whose cumulative probability reaches `share`."""
    reached = 0.0
    for value, weight in weighted:
        reached += weight
        if reached >= share:
            return value
    return weighted[-1][0]


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """first - second on the seeds that both have, in seed order."""
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def seeds_needed(differences: Sequence[float]) -> int | None:
    """Seeds at which a difference of this size would be found four times out of five: ((z_.975 + z_.8) sd / mean)^2.

    None where more than `MOST_SEEDS` would be, or the mean difference is zero.
    """
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    if mean == 0:
        return None
    normal = statistics.NormalDist()
    factor = normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(_POWER)
    ratio = factor * spread / abs(mean)
    needed = max(math.ceil(ratio * ratio), len(differences) + 1, FEWEST)
    return needed if needed <= MOST_SEEDS else None


def compare(first: Mapping[int, float], second: Mapping[int, float], lowest: bool = False) -> Verdict:
    """Who is ahead on the shared seeds, where the interval of the difference leaves out zero."""
    differences = paired(first, second)
    found = interval(differences)
    if found.low is None or found.high is None:
        return Verdict("too few seeds", found)
    if found.low > 0 or found.high < 0:
        return Verdict("first" if (found.low > 0) != lowest else "second", found)
    return Verdict("not separated", found, seeds_needed(differences))


def sentence(first: str, second: str, verdict: Verdict, verb: str = "beats") -> str:
    """The comparison in words, made from its interval."""
    found = verdict.difference
    if found.seeds == 0:
        return f"{first} and {second}: no shared seed has finished."
    if found.low is None or found.high is None:
        return (
            f"{first} and {second} differ by {signed(found.mean)} on {count(found.seeds)}: too few to judge "
            f"({FEWEST} are needed)."
        )
    span = f"{figure(min(abs(found.low), abs(found.high)))} to {figure(max(abs(found.low), abs(found.high)))}"
    if verdict.state in ("first", "second"):
        ahead, behind = (first, second) if verdict.state == "first" else (second, first)
        return f"{ahead} {verb} {behind} by {figure(abs(found.mean))} ({span}) on {count(found.seeds)}."
    more = f"about {verdict.needed} seeds" if verdict.needed else f"more than {MOST_SEEDS} seeds"
    return (
        f"{first} and {second} are not separated: {signed(found.mean)} ({signed(found.low)} to {signed(found.high)}) "
        f"on {count(found.seeds)}; {more} would be needed for a difference of this size."
    )


def figure(value: float) -> str:
    """Two decimals without the leading zero below 1, more where two show nothing: .12, 1.50, .004."""
    places = 2 if abs(value) >= 0.01 or value == 0 else min(12, 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{places}f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def signed(value: float) -> str:
    """With its sign."""
    return ("+" if value > 0 else "") + figure(value)


def count(seeds: int) -> str:
    """Seeds in words."""
    return f"{seeds} seed{'' if seeds == 1 else 's'}"

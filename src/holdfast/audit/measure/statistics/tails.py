"""The tail of importance weights: Pareto's k of tokens and sequences, extreme quantiles, rates, and the signed skew."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from holdfast.audit.measure.binned import Binned
from holdfast.audit.measure.estimate import Estimate
from holdfast.audit.measure.extremes import RATES, SIGNS
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

MOST = 20_000
"""Largest values of either sign that are kept; `pareto_k` is fitted to at most MOST_FITTED of them."""
ROUNDING = 1e-6
"""Excesses over the threshold, relative to it, that are the rounding of float32 and no tail."""
MOST_FITTED = 10_000
FEWEST_FITTED = 25
SHARES = (0.99, 0.999, 0.9999, 0.99999)


@dataclass
class Largest:
    """The largest of many numbers, in bounded memory, and how many there were."""

    most: int = MOST
    count: int = 0
    kept: Column = field(default_factory=lambda: np.zeros(0))
    floor: float = -math.inf
    """Values below are not among the largest."""

    def add(self, values: Column) -> None:
        """Add numbers."""
        self.count += len(values)
        self.kept = np.concatenate([self.kept, values[values > self.floor]])
        if len(self.kept) > 2 * self.most:
            self.kept = np.partition(self.kept, len(self.kept) - self.most)[-self.most :]
            self.floor = float(self.kept.min())

    def merge(self, other: Largest) -> None:
        """Add another's numbers: the largest of both are among the largest of each."""
        self.count += other.count - len(other.kept)
        self.add(other.kept)

    def top(self, count: int) -> Column:
        """The `count` largest, in rising order; fewer where fewer are known."""
        return np.sort(self.kept)[-count:] if count else self.kept[:0]

    def quantile(self, share: float) -> float | None:
        """The value below which this share of all lies; None where it is not among those kept, or there are too few."""
        above = round((1 - share) * self.count)
        return float(self.top(above)[0]) if 1 <= above <= min(len(self.kept), self.most) else None


@dataclass
class Tails:
    """What means do not show: how heavy the tails of the weights are, and whom they hit.

    `above` and `below` are r and -r of tokens, r = log p(trainer) - log p(engine), `sequences` Σ r of sequences.
    """

    above: Largest = field(default_factory=Largest)
    below: Largest = field(default_factory=Largest)
    sequences: Largest = field(default_factory=Largest)
    rates: Binned = field(default_factory=lambda: Binned(len(RATES) + 1))
    skew: Binned = field(default_factory=lambda: Binned(4))
    """Σ -(w - 1) A and tokens with A > 0, and the same with A < 0."""

    def update(self, view: View) -> None:
        """Take in one chunk with both log-probabilities."""
        ratio = view.log_ratio
        self.above.count += int(view.measured.sum())
        self.below.count = self.above.count
        for side, sign in ((self.above, 1), (self.below, -1)):
            far = np.flatnonzero(sign * ratio > max(side.floor, 0.0))
            side.count -= len(far)
            side.add(sign * ratio[far].astype(np.float64))
        self.sequences.add(view.sum(ratio)[view.sequence_measured > 0])
        self.rates.add_quantities(view, view.extremes)
        if view.has("advantages"):
            self.skew.add_quantities(view, view.pulls[:, :4])

    def rate(self, name: str) -> Estimate | None:
        """Share of the measured tokens that are extreme in one of the RATES, with its interval over prompts.

        Where none was, the interval ends at 1 - .025^(1/n) of n tokens: the rule for none in n.
        """
        at = RATES.index(name)
        tokens = float(self.rates.sums[:, -1].sum())
        if not tokens:
            return None
        if not self.rates.sums[:, at].any():
            return Estimate(0.0, 0.0, 1 - 0.025 ** (1 / tokens))
        return self.rates.estimate_totals(lambda sums, _: sums[..., at] / np.maximum(sums[..., -1], 1))

    def signed_skew(self, sign: str) -> Estimate | None:
        """E[-(w - 1) A | sign of A], in units of A: 0 where weights err to neither side of it; None without advantages.

        It is reported to move hundreds of steps before any KL does (VeXact, arXiv 2605.14220).
        """
        at = 2 * SIGNS.index(sign)
        if not self.skew.sums[:, at + 1].any():
            return None
        return self.skew.estimate_totals(lambda sums, _: sums[..., at] / np.maximum(sums[..., at + 1], 1))


def pareto_k(largest: Largest) -> Estimate | None:
    """Pareto's k of the weights exp(value) beyond a threshold; below .5 their variance is finite, from 1 no mean is.

    The threshold leaves M = min(n / 5, 3 √n) values (Vehtari, Simpson, Gelman, Yao and Gabry, Pareto smoothed
    importance sampling, JMLR 25 (2024); above .7 they call estimates unreliable), at most MOST_FITTED here. k is the
    posterior mean of Zhang and Stephens (Technometrics 51 (2009)), drawn to .5 as by ten more values. The interval is
    1.96 (1 + k) / √M, that of independent values: tokens of a sequence are not, and it is then too narrow. None where
    fewer than FEWEST_FITTED values are beyond, or all are alike.
    """
    count = int(min(0.2 * largest.count, 3 * math.sqrt(largest.count), MOST_FITTED))
    values = largest.top(count + 1)
    if count < FEWEST_FITTED or len(values) <= count:
        return None
    weights = np.exp(values - values[-1])
    beyond = weights[1:] - weights[0]
    beyond = beyond[beyond > ROUNDING * weights[0]]
    if len(beyond) < FEWEST_FITTED:
        return None
    k = (len(beyond) * _zhang_stephens(beyond) + 10 * 0.5) / (len(beyond) + 10)
    width = 1.96 * (1 + max(k, 0.0)) / math.sqrt(len(beyond))
    return Estimate(k, k - width, k + width)


def _zhang_stephens(beyond: Column) -> float:
    """k of a generalised Pareto distribution, from exceedances in rising order."""
    n = len(beyond)
    grid = 30 + int(math.sqrt(n))
    quarter = beyond[max(0, int(n / 4 + 0.5) - 1)]
    theta = 1 / beyond[-1] + (1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3 * quarter)
    k = np.array([np.log1p(-t * beyond).mean() for t in theta])
    told = (k != 0) & (theta / np.where(k == 0, 1, k) < 0)  # at 0 the profile has no value
    theta, k = theta[told], k[told]
    profile = n * (np.log(-theta / k) - k - 1)
    weight = np.exp(profile - profile.max())
    return float(np.log1p(-(theta * weight).sum() / weight.sum() * beyond).mean())

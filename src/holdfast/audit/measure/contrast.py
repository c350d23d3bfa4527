"""Comparisons of drift between groups at equal conditions, with intervals over what was sampled independently.

Growth of B over A is Σ_c w_c m_B(c) / Σ_c w_c m_A(c): m are mean drifts in condition c, and w_c = n_A n_B / (n_A + n_B)
(Mantel and Haenszel's weight) makes conditions count that both groups know well. Its interval is exp(log growth ±
t·s), s the bootstrap's standard deviation over independent units and t Student's quantile for their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from holdfast.audit.measure.estimate import Estimate
from holdfast.audit.measure.stretches import CLASSES
from holdfast.audit.measure.tokens import FOLDS
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

RESAMPLES = 200
FEWEST_UNITS = 6
FEWEST_TOKENS = 1000


class Groups:
    """Drift per fold of prompts, group of stretches and class of uncertainty: `sums` = Σ|log ratio| and `counts`.

    Both are [FOLDS, groups, CLASSES]; `kl` [groups] is Σ k3.
    """

    def __init__(self, groups: int) -> None:
        self.sums = np.zeros((FOLDS, groups, CLASSES))
        self.counts = np.zeros((FOLDS, groups, CLASSES))
        self.kl = np.zeros(groups)

    def add(self, view: View, group: Column) -> None:
        """Add a chunk's stretches to their groups [R]; those with a negative group are left out."""
        stretches, groups = view.stretches, len(self.kl)
        rows = np.flatnonzero(group >= 0)
        place = view.fold[stretches.sequence[rows]] * groups + group[rows]
        for total, values in ((self.sums, stretches.sums), (self.counts, stretches.counts)):
            flat = total.reshape(-1, CLASSES)
            for column in range(CLASSES):
                flat[:, column] += np.bincount(place, weights=values[rows, column], minlength=len(flat))
        self.kl += np.bincount(group[rows], weights=stretches.kl[rows], minlength=groups)

    @staticmethod
    def of(cells: Sequence[Column]) -> Groups:
        """Groups of which each is the sum of `fold_sums`."""
        made = Groups(len(cells))
        for group, cell in enumerate(cells):
            made.sums[:, group], made.counts[:, group], made.kl[group] = cell[0], cell[1], cell[2].sum()
        return made

    def tokens(self) -> Column:
        """[groups] measured tokens."""
        return self.counts.sum((0, 2))

    def units(self) -> Column:
        """[groups] folds of prompts with measured tokens."""
        return (self.counts.sum(2) > 0).sum(0)

    def kl_of(self, groups: Column | list[int]) -> float:
        """Mean k3 per token over these groups."""
        return float(self.kl[groups].sum() / max(1.0, self.tokens()[groups].sum()))

    def growth(self, first: Column | list[int], second: Column | list[int]) -> Growth:
        """Growth of the second groups together over the first together."""
        return growth(self.pick(first), self.pick(second))

    def pick(self, groups: Column | list[int]) -> tuple[Column, Column]:
        """(sums, counts), both [FOLDS, CLASSES], of several groups together."""
        return self.sums[:, groups].sum(1), self.counts[:, groups].sum(1)


def fold_sums(view: View, rows: Column) -> Column:
    """[3, FOLDS, CLASSES]: Σ|log ratio|, tokens and, in the first class, Σ k3 of these stretches of a chunk."""
    stretches, out = view.stretches, np.zeros((3, FOLDS, CLASSES))
    fold = view.fold[stretches.sequence[rows]]
    np.add.at(out[0], fold, stretches.sums[rows])
    np.add.at(out[1], fold, stretches.counts[rows])
    out[2, :, 0] = np.bincount(fold, stretches.kl[rows], FOLDS)
    return out


@dataclass(frozen=True)
class Growth:
    """By what factor the drift of one group exceeds another's at equal conditions, and how well that is known.

    `units` is the number of independent units (folds of prompts, or steps) in the smaller group.
    """

    value: float
    deviation: float
    units: int

    def estimate(self, level: float = 0.95) -> Estimate:
        """The factor with its interval."""
        if not (math.isfinite(self.deviation) and self.value > 0):
            return Estimate(self.value, float("-inf"), float("inf"))
        width = math.exp(student_quantile((1 + level) / 2, self.units - 1) * self.deviation)
        return Estimate(self.value, self.value / width, self.value * width)

    def surely_above(self, factor: float, chance: float = 0.001) -> bool:
        """Whether the factor exceeds this one but for so small a chance."""
        return self.units >= FEWEST_UNITS and self.estimate(1 - 2 * chance).low > factor


UNKNOWN = Growth(float("nan"), float("nan"), 0)


def growth(first: tuple[Column, Column], second: tuple[Column, Column], *, paired: bool = True) -> Growth:
    """Growth of the second group over the first; each is (sums, counts), both [units, conditions].

    `paired`: unit i of both is the same fold of prompts, and both are resampled together.
    """
    if not paired:
        first, second = _filled(*first), _filled(*second)
    (sums_a, counts_a), (sums_b, counts_b) = first, second
    if min(counts_a.sum(), counts_b.sum()) < FEWEST_TOKENS:
        return UNKNOWN
    units = min(int((counts.sum(1) > 0).sum()) for counts in (counts_a, counts_b))
    value = float(_factor(sums_a.sum(0), counts_a.sum(0), sums_b.sum(0), counts_b.sum(0)))
    if units < 2 or not value > 0:
        return Growth(value, float("inf"), units)
    rng = np.random.default_rng(0)
    draws_a = _draws(rng, len(counts_a))
    draws_b = draws_a if paired else _draws(rng, len(counts_b))
    factors = _factor(draws_a @ sums_a, draws_a @ counts_a, draws_b @ sums_b, draws_b @ counts_b)
    known = factors[factors > 0]
    deviation = float(np.log(known).std()) if len(known) > RESAMPLES // 2 else float("inf")
    return Growth(value, deviation * math.sqrt(units / (units - 1)), units)


def trend_chance(values: Column) -> float:
    """Chance that values in random order rise as steadily as these do (Kendall's test against time, one-sided)."""
    count = len(values)
    if count < 3:
        return 1.0
    rises = sum(float(np.sign(values[i + 1 :] - values[i]).sum()) for i in range(count - 1))
    spread = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    return 1 - NormalDist().cdf((rises - math.copysign(1, rises)) / spread)


def student_quantile(share: float, freedom: int) -> float:
    """Student's t quantile by Fisher's expansion: to 2 % at 5 degrees of freedom and shares up to .999."""
    z, n = NormalDist().inv_cdf(share), max(1, freedom)
    terms = (
        z,
        (z**3 + z) / (4 * n),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3),
    )
    return sum(terms)


def _factor(sums_a: Column, counts_a: Column, sums_b: Column, counts_b: Column) -> Column:
    with np.errstate(invalid="ignore", divide="ignore"):
        shared = (counts_a > 0) & (counts_b > 0)
        weight = np.where(shared, counts_a * counts_b / (counts_a + counts_b), 0)
        late = np.where(shared, weight * sums_b / counts_b, 0).sum(-1)
        return np.asarray(late / np.where(shared, weight * sums_a / counts_a, 0).sum(-1))


def _draws(rng: np.random.Generator, units: int) -> Column:
    return rng.multinomial(units, np.full(units, 1 / units), RESAMPLES).astype(np.float64)


def _filled(sums: Column, counts: Column) -> tuple[Column, Column]:
    rows = counts.sum(1) > 0
    return sums[rows], counts[rows]

"""Tokens whose two probabilities are far apart too often, or so far that their weights outweigh all others."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.places import Places
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.binned import Binned
from holdfast.audit.measure.estimate import Estimate
from holdfast.audit.measure.extremes import EXTREME, RATES
from holdfast.audit.measure.statistics.tails import Largest, pareto_k
from holdfast.audit.measure.tokens import LOG_RATIO_LIMIT
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

LIMITS = {"beyond 20": 0.0015, "confident disagreement": 0.0015}
"""Shares of the tokens. Healthy simulated mixtures of experts have up to .0007 and .0009 of them."""
EFFECTIVE, HEAVY = 0.8, 0.7
"""Effective share of the tokens below which weights per token waste data, and Pareto's k from which the tail does it.
"""
LEVEL = 0.998


class HeavyTails:
    """Counts tokens beyond a factor of 20 and confident disagreements, and asks what weights w = exp(r) are worth.

    Effective share: (Σw)² / (n Σw²), 1 where all weights are equal. Pareto's k of the largest weights alone tells
    nothing: in healthy mixtures of experts it is anything up to 2, of weights that stay near 1. Together with a small
    effective share it says that a few weights do it, and that more data does not mend it.
    """

    name = "heavy_tails"
    asks = "Are tokens that the two policies see wholly differently rare, and their weights bearable?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs"})

    def __init__(self) -> None:
        self.rates = Binned(len(RATES) + 1)
        self.weights = Binned(3)
        """Σ w, Σ w² and measured tokens."""
        self.above = Largest()
        self.places = Places()

    def update(self, view: View) -> None:
        """Count extreme tokens, and sum weights."""
        self.rates.add_quantities(view, view.extremes)
        change = view.weight_change
        sums = [view.sum(change), view.sum(np.square(change)), view.sequence_measured]
        self.weights.add_quantities(view, np.column_stack(sums))
        above = np.flatnonzero(view.log_ratio > max(self.above.floor, 0.0))
        self.above.count += int(view.measured.sum()) - len(above)
        self.above.add(view.log_ratio[above].astype(np.float64))
        far = np.flatnonzero(view.size > EXTREME["20"])
        self.places.add(view, far, np.minimum(view.size[far], LOG_RATIO_LIMIT))

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """One finding, by the first of the three that is beyond its limit for sure."""
        if not self.weights.sums[:, 2].any():
            return
        rates = {name: self._rate(name, LEVEL) for name in LIMITS}
        effective, k = self._effective(), pareto_k(self.above)
        high = {name: rate for name, rate in rates.items() if rate.low > LIMITS[name]}
        wasted = effective.high < EFFECTIVE and k is not None and k.low > HEAVY
        if not (high or wasted):
            return
        yield Finding(
            name=self.name,
            kind="drift",
            severity="critical" if any(rate.low > 5 * LIMITS[name] for name, rate in high.items()) else "warning",
            headline=_headline(high, effective),
            meaning="At such tokens the engine and the trainer are not the same model with other rounding: one of them "
            "read another context, other weights, or another row of the distribution. Means over tokens hide them, "
            "and a ratio there decides the step alone.",
            fix="Look at these tokens (positions below): a kind of token, a position or an environment that they share "
            "points to the cause. Until it is found mask them, or truncate token weights.",
            evidence={
                **{f"share {name}": self._rate(name) for name in LIMITS},
                "effective share of the tokens": effective,
                **({} if k is None else {"Pareto's k of token weights": k}),
            },
            where=self.places.where(),
            settings=settings("sequence_mask") if high else settings("truncated_token_weights"),
        )

    def _rate(self, name: str, level: float = 0.95) -> Estimate:
        at = RATES.index(name)
        return self.rates.estimate_totals(lambda sums, _: sums[..., at] / np.maximum(sums[..., -1], 1), level)

    def _effective(self) -> Estimate:
        """Of w = 1 + c: Σw = n + Σc and Σw² = n + 2 Σc + Σc²."""

        def share(sums: Column, _: Column) -> Column | float:
            change, square, count = sums[..., 0], sums[..., 1], np.maximum(sums[..., 2], 1)
            return (count + change) ** 2 / (count * (count + 2 * change + square))

        return self.weights.estimate_totals(share, LEVEL)


def _headline(high: dict[str, Estimate], effective: Estimate) -> str:
    if "beyond 20" in high:
        return (
            f"at {high['beyond 20'].value:.2%} of the tokens the two probabilities differ by a factor beyond 20: one "
            f"in {1 / high['beyond 20'].value:,.0f}, where healthy runs have one in thousands"
        )
    if high:
        return (
            f"at {high['confident disagreement'].value:.2%} of the tokens the engine was sure (a probability of .5 or "
            "more) and the trainer gives a seventh of that or less"
        )
    return (
        f"a few enormous weights make a weight per token worth {effective.value:.0%} of the data, and their tail is so "
        "heavy that more data does not mend it"
    )

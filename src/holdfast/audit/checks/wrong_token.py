"""The engine's log-probability is of another token: the first entry of a dictionary, the likeliest one."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.audit.checks.check import Facts
from holdfast.audit.checks.places import Places
from holdfast.audit.checks.weight_balance import LEVEL, WeightBalance
from holdfast.audit.finding import Finding
from holdfast.audit.view import View

IMBALANCE = 0.25
FEWEST = 20


class WrongToken:
    """Looks for weight that is lost at ratios below ½ and gained nowhere.

    Drift makes such ratios too, but then others gain what these lose (`WeightBalance`). A recorded likeliest token in
    place of the sampled one only ever loses. Exact zeros are `zero_filled`'s.
    """

    name = "wrong_token"
    asks = "Is each log-probability that of the sampled token?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs"})

    def __init__(self) -> None:
        self.balance = WeightBalance()
        self.count = 0
        self.places = Places()

    def update(self, view: View) -> None:
        """Add weights, and remember the largest ratios."""
        self.balance.update(view)
        self.count += len(view.far_below) - len(view.blank)
        below = view.far_below[view.tokens("rollout_logprobs")[view.far_below] < 0]
        self.places.add(view, below, -view.log_ratio[below])

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where most of the lost weight is lost at once and not gained elsewhere."""
        if self.count < max(FEWEST, 0.001 * facts.measured_tokens):
            return
        means = self.balance.sums.mean()
        imbalance = self.balance.sums.estimate(self.balance.imbalance, LEVEL)
        if imbalance.low < IMBALANCE or self.balance.far_share(means) < 0.5:
            return
        deficit = self.balance.sums.estimate(self.balance.deficit)
        share = self.count / facts.measured_tokens
        yield Finding(
            name=self.name,
            kind="data",
            severity="critical",
            headline=f"{self.count:,} tokens ({share:.2%}) have an engine log-probability that is far too high and "
            "none that is too low: it looks like the likeliest token's, not the sampled one's",
            meaning="Wherever sampling did not take the likeliest token, the ratio is far below 1: exploration is "
            "masked or down-weighted, and the loss sees a drift that is not there.",
            fix="Take the log-probability by the sampled token's id. In engines that return a dictionary of the top "
            "tokens, the first entry is the likeliest one.",
            evidence={
                "tokens": self.count,
                "share of tokens": share,
                "imbalance of weights": imbalance,
                "mean weight missing": deficit,
            },
            where=self.places.where(),
            invalidates=True,
        )

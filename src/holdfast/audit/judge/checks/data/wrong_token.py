"""The engine's log-probability is of another token: the first entry of a dictionary, the likeliest one."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.audit.judge.checks.calibration import FEWEST_TOKENS, Calibration, deficit, far_deficit, far_imbalance
from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.places import Places
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.view import View

IMBALANCE = 0.4
FEWEST = 20


class WrongToken:
    """Looks for weight that is lost at ratios below ½ and gained nowhere.

    Drift makes such ratios too, but then others gain what these lose (`Calibration`). A recorded likeliest token in
    place of the sampled one only ever loses. Exact zeros are `zero_filled`'s.
    """

    name = "wrong_token"
    asks = "Is each log-probability that of the sampled token?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs"})

    def __init__(self) -> None:
        self.calibration = Calibration()
        self.count = 0
        self.places = Places()

    def update(self, view: View) -> None:
        """Add weights, and remember the largest ratios."""
        self.calibration.update(view)
        self.count += len(view.far_below) - len(view.blank)
        below = view.far_below[view.tokens("rollout_logprobs")[view.far_below] < 0]
        self.places.add(view, below, -view.log_ratio[below])

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where most of the lost weight is lost at once and not gained elsewhere."""
        c = self.calibration
        if self.count < max(FEWEST, 0.001 * c.tokens) or c.tokens < FEWEST_TOKENS:
            return
        missing = c.estimate(deficit, 0.95)
        imbalance = c.estimate(far_imbalance)
        if imbalance.low < IMBALANCE or missing.low <= 0 or c.value(far_deficit) < 0.5 * missing.value:
            return
        share = self.count / c.tokens
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
                "mean weight missing": missing,
            },
            where=self.places.where(),
            settings=settings("engine_logprobs"),
            invalidates=True,
        )

"""A mask that keeps short responses and drops long ones: (1 - p)^T with a rate p of violating tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.lengths import ByLength, length_of
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.estimate import Estimate
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

DROP, SURE_DROP = 0.1, 0.03
"""The longest quarter of responses keeps this share less than the shortest one; beyond chance, at least this much."""
CHANCE_LEVEL = 0.998
FEWEST_SEQUENCES = 32

MASKS: Mapping[str, Callable[[View], Column]] = {
    "TRM-Max, k2 ≤ .05": lambda view: view.max(view.size) ** 2 / 2 <= 0.05,
    "TRM-Avg, k3 ≤ .001": lambda view: _mean(view, view.sequence_k3) <= 0.001,
    "product of ratios ≤ 3": lambda view: view.sum(view.log_ratio) <= np.log(3),
    "geometric mean in [.999, 1.001]": lambda view: np.abs(_mean(view, view.sum(view.log_ratio))) <= 0.001,
}
"""What published masks would keep, per sequence: the evidence beside the recorded mask."""


class AcceptanceByLength:
    """Compares the share of tokens that the recorded mask keeps in the longest quarter of responses and the shortest.

    Where it falls, the evidence says what the published masks would have kept on the same responses.
    """

    name = "acceptance_by_length"
    asks = "Do long responses get into the gradient as often as short ones?"
    needs = frozenset({"trust_mask", "rollout_logprobs", "trainer_logprobs"})

    def __init__(self) -> None:
        self.recorded = ByLength()
        self.masks = {name: ByLength() for name in MASKS}

    def update(self, view: View) -> None:
        """Take each sequence's kept share, and each mask's verdict."""
        known = view.measured & view.given("trust_mask")
        tokens = view.sum(known)
        kept = view.sum(view.tokens("trust_mask") & known) / np.maximum(tokens, 1)
        if (tokens == 0).any():
            kept = np.where(tokens > 0, kept, 1.0)
        self.recorded.add(view, kept)
        for name, keeps in MASKS.items():
            self.masks[name].add(view, keeps(view).astype(np.float64))

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where the longest quarter keeps less than the shortest by more than DROP."""
        if self.recorded.binned.count().sum() < FEWEST_SEQUENCES:
            return
        short, long = self.recorded.quarters()
        if short[-1] >= long[0]:
            return
        drop = _drop(self.recorded, short, long, CHANCE_LEVEL)
        if not (drop.value > DROP and drop.low > SURE_DROP):
            return
        kept_short, kept_long = _kept(self.recorded, short), _kept(self.recorded, long)
        would = {
            f"{name}: shortest → longest": f"{_kept(mask, short):.0%} → {_kept(mask, long):.0%}"
            for name, mask in self.masks.items()
        }
        yield Finding(
            name=self.name,
            kind="training",
            severity="critical" if kept_long < 0.3 else "warning",
            headline=f"the mask keeps {kept_short:.0%} of the shortest quarter of responses and {kept_long:.0%} of "
            f"those from {length_of(int(long[0])):,} tokens on",
            meaning="A rule on the worst token, or on a product over tokens, rejects by length even where all tokens "
            "drift alike. The policy is then trained on short responses, and learns to be short.",
            fix="Use a rule whose scale does not depend on the length (a mean over tokens, or the length-neutral "
            "mask), or a threshold fitted to this run that keeps at least 70 % of the longest quarter.",
            evidence={
                "lost with length": _drop(self.recorded, short, long, 0.95),
                "kept, shortest quarter": kept_short,
                "kept, longest quarter": kept_long,
                **would,
            },
            settings=settings("length_neutral_mask"),
        )


def _drop(shares: ByLength, short: Column, long: Column, level: float) -> Estimate:
    return shares.binned.estimate_totals(
        lambda sums, counts: (
            sums[..., short].sum(-1) / counts[..., short].sum(-1) - sums[..., long].sum(-1) / counts[..., long].sum(-1)
        ),
        level,
    )


def _kept(shares: ByLength, bins: Column) -> float:
    return float(shares.binned.sums[:, bins].sum() / max(1.0, shares.binned.counts[:, bins].sum()))


def _mean(view: View, sums: Column) -> Column:
    return sums / np.maximum(view.sequence_measured, 1)

"""The logged exact KL is not that of the log-probabilities beside it: what rests on it would certify too much."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.calibration import FEWEST_TOKENS
from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.finding import Finding
from holdfast.audit.measure.binned import Binned
from holdfast.audit.measure.tokens import LOG_RATIO_LIMIT
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

LEVEL = 0.998
FACTOR = 1.5
"""By which the two means must differ at least: float32 and rounded logs leave a few per cent."""


class ExactKlContradicted:
    """Compares the recorded exact KL with what the sampled tokens say of it, two-sided, at 99.8 % confidence.

    For tokens sampled from the engine E k1 = KL(engine‖trainer), and E k3 = KL less the mass that the trainer gives to
    tokens that the engine never writes. So a recorded KL below the lower limit of k3's mean is too small; k3's tail is
    heavy, and the limit must hold without the sequences of the largest hundredth too. One above the upper limits of
    both means is too large: k1's has no heavy tail, and k3's does not fluctuate in sign. By FACTOR at least.
    """

    name = "exact_kl_contradicted"
    asks = "Is the recorded exact KL that of these log-probabilities?"
    needs = frozenset({"rollout_logprobs", "trainer_logprobs", "kl_exact"})

    def __init__(self) -> None:
        self.sums = Binned(4)
        self.plain = Binned(4)

    def update(self, view: View) -> None:
        """Sum both, with and without the sequences whose k3 a few tokens make."""
        exact = view.tokens("kl_exact")
        both = view.measured & np.isfinite(exact) & (view.size < LOG_RATIO_LIMIT)
        kept = (both, np.where(both, view.k3, 0), np.where(both, exact, np.float32(0)), -view.log_ratio * both)
        sums = np.column_stack([view.sum(values) for values in kept])
        self.sums.add_quantities(view, sums)
        self.plain.add_quantities(view, sums * _ordinary(view, both)[:, None])

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where the two means cannot both be true."""
        tokens = float(self.sums.sums[:, 0].sum())
        if tokens < FEWEST_TOKENS or not (self._too_small() or self._too_large()):
            return
        k3, exact, k1 = (self.sums.estimate(lambda m, k=k: m[..., k] / m[..., 0]) for k in (1, 2, 3))
        seen = k3 if k3.value > exact.value else k1
        yield Finding(
            name=self.name,
            kind="data",
            severity="critical",
            headline=f"the recorded exact KL is {exact.value:.3g} nats a token, but the sampled log-probabilities give "
            f"{seen.value:.3g}: they cannot both be right",
            meaning="Bounds, certificates and thresholds that rest on the recorded KL would promise what is not so. "
            "The sampled tokens estimate the same KL without bias.",
            fix="Compute the KL over the whole vocabulary from the same logits, temperature and support as the two "
            "log-probabilities, KL(engine‖trainer), in nats; look for a column left over from another run, a mean "
            "over the batch, the other direction, or a unit of bits.",
            evidence={"mean k3": k3, "mean k1": k1, "mean recorded exact KL": exact, "tokens compared": int(tokens)},
            spoils_advice=True,
        )

    def _too_small(self) -> bool:
        return all(_differ(sums, 1) > 0 for sums in (self.sums, self.plain))

    def _too_large(self) -> bool:
        return all(_differ(self.sums, quantity) < 0 for quantity in (1, 3))


def _differ(sums: Binned, quantity: int) -> int:
    """1 where the mean of k3 (1) or k1 (3) is surely above the recorded KL and FACTOR times it, -1 where below."""
    other, exact = (float(sums.sums[:, k].sum()) for k in (quantity, 2))
    gap = sums.estimate(lambda m: (m[..., quantity] - m[..., 2]) / m[..., 0], LEVEL)
    if gap.low > 0 and other > FACTOR * exact:
        return 1
    return -1 if gap.high < 0 and exact > FACTOR * other else 0


def _ordinary(view: View, both: Column) -> Column:
    """[N] True for all sequences of the chunk but the one in a hundred with the largest k3 on one token."""
    peak = view.max(np.where(both, view.k3, 0))
    return peak <= np.quantile(peak, 0.99)

"""Do weights lost and weights gained balance? In a true log they must."""

from __future__ import annotations

import numpy as np

from holdfast.audit.binned import Binned
from holdfast.audit.columns import Column
from holdfast.audit.view import View

LEVEL = 0.998


class WeightBalance:
    """Sums of exp(r) - 1 over a run, where r is the log-ratio trainer/engine of sampled tokens.

    If the engine's log-probabilities are those it sampled with and both policies share a support, then
    E[exp(r)] = 1 at every context, whatever the drift: what some tokens lose, others gain. The imbalance
    (lost - gained) / (lost + gained) is then 0 and has no scale; it is ±1 where all ratios err to one side.
    """

    def __init__(self) -> None:
        self.sums = Binned(4)

    def update(self, view: View) -> None:
        """Add one chunk."""
        self.sums.add_quantities(view, _with_count(view))

    def imbalance(self, means: Column) -> Column:
        """(lost - gained) / (lost + gained) of [..., 4] means."""
        return -means[..., 1] / (means[..., 2] + 1e-12)

    def deficit(self, means: Column) -> Column:
        """1 - E[exp(r)], the mean weight that is missing per token."""
        return -means[..., 1] / means[..., 0]

    def far_share(self, means: Column) -> Column:
        """Share of the lost weight on tokens whose ratio is below ½."""
        return means[..., 3] / ((means[..., 2] - means[..., 1]) / 2 + 1e-12)


def _with_count(view: View) -> Column:
    return np.column_stack([view.sequence_measured, view.weight_moments])

"""The drift over all tokens: overall, by position, length, step, environment; intervals by bootstrap over prompts."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from holdfast.audit.binned import Binned, power_bin
from holdfast.audit.columns import Column
from holdfast.audit.finding import Estimate
from holdfast.audit.statistics.tables import Quantiles, StepTable, Table
from holdfast.audit.view import View
from holdfast.core.advise import PUBLISHED

DEPTHS = 24
MOST_ENVIRONMENTS = 40
OTHERS = "(all others)"
ESTIMATORS = ("k1", "k2", "k3", "abs_log", "kl_exact")
"""Per token, in nats: -r, r²/2, e^r - 1 - r and |r| of the log-ratio r, and the exact KL(engine‖trainer)."""
COLUMNS = (
    *ESTIMATORS,
    "tokens",
    "kl_tokens",
    "sequences",
    "judged",
    "accepted",
    "compared",
    "within",
    "reward",
    "paid",
)
"""Sums over sequences. `tokens` and `kl_tokens` are those that estimators and exact KL were measured on, `judged` and
`accepted` sequences with a recorded verdict and those with no token masked, `compared` and `within` sequences with
measured tokens and those that TRM-Max would keep at its published threshold, `paid` those with a reward."""


@dataclass
class Statistics:
    """Sums over measured tokens; every mean made of them is an estimate, since rollouts are a sample."""

    by_length: Table = field(default_factory=lambda: Table(COLUMNS))
    by_step: StepTable = field(default_factory=lambda: StepTable(COLUMNS))
    by_environment: Table = field(default_factory=lambda: Table(COLUMNS))
    by_depth: Binned = field(default_factory=lambda: Binned(DEPTHS))
    k3_by_depth: Binned = field(default_factory=lambda: Binned(DEPTHS))
    sizes: Quantiles = field(default_factory=Quantiles)
    rewards: tuple[float, float] | None = None
    """Smallest and largest reward that was logged."""

    def update(self, view: View) -> None:
        """Take in one chunk."""
        columns = _columns(view)
        self.by_length.add(power_bin(columns["own"], DEPTHS).tolist(), view.fold, columns)
        if view.has("step"):
            self.by_step.add_steps(view.step, view.fold, columns)
        if view.has("environment"):
            self.by_environment.add(self._environments(view), view.fold, columns)
        if view.has("reward"):
            self._note_rewards(view.numbers("reward"))
        if view.chunk.token_count and view.has("rollout_logprobs", "trainer_logprobs"):
            self.by_depth.add_tokens(view, view.depth, view.size)
            self.k3_by_depth.add_tokens(view, view.depth, view.k3)
            self.sizes.add(view.size[view.measured], view.token_fold[view.measured])

    def mean(self, name: str) -> Estimate | None:
        """An estimator's mean per token over the whole run; None where it was not measured."""
        return self.by_length.mean(name, per(name))

    @property
    def exact(self) -> bool:
        """Whether the log holds exact KL."""
        return self.by_length.total("kl_tokens") > 0

    def _environments(self, view: View) -> list[str]:
        names = ["(not recorded)" if name is None else str(name) for name in view.chunk.words["environment"]]
        known = {*self.by_environment.sums}
        for name in dict.fromkeys(names):
            if name not in known and len(known) < MOST_ENVIRONMENTS:
                known.add(name)
        return [name if name in known else OTHERS for name in names]

    def _note_rewards(self, rewards: Column) -> None:
        given = rewards[np.isfinite(rewards)]
        if len(given):
            low, high = self.rewards or (np.inf, -np.inf)
            self.rewards = min(low, float(given.min())), max(high, float(given.max()))


def per(estimator: str) -> str:
    """What an estimator's sum is divided by."""
    return "kl_tokens" if estimator == "kl_exact" else "tokens"


def _columns(view: View) -> dict[str, Column]:
    """[N] of every quantity of COLUMNS, and `own`, the policy's own tokens."""
    count = len(view.chunk)
    out: dict[str, Column] = {name: np.zeros(count) for name in COLUMNS}
    out["own"], out["sequences"] = view.sum(view.own), np.ones(count)
    peak = None
    if view.has("rollout_logprobs", "trainer_logprobs"):
        out["tokens"] = view.sequence_measured
        out["k1"], out["abs_log"] = -view.sum(view.log_ratio), view.sum(view.size)
        out["k2"] = view.sum(view.log_ratio * view.log_ratio) / 2
        out["k3"] = view.sum(view.k3)
        out["compared"] = (view.sequence_measured > 0).astype(float)
        peak = view.max(view.size) ** 2 / 2
    if view.has("kl_exact"):
        exact = view.tokens("kl_exact")
        known = view.own & np.isfinite(exact)
        exact = np.where(known, exact, np.float32(0))
        out["kl_tokens"], out["kl_exact"] = view.sum(known), view.sum(exact)
        if peak is not None:
            peak = np.where(out["kl_tokens"] > 0, view.max(exact), peak)
    if peak is not None:
        out["within"] = out["compared"] * (peak <= PUBLISHED["trm_max"])
    if view.has("trust_mask"):
        judged = view.chunk.present["trust_mask"] & (out["own"] > 0)
        masked = view.sum(view.own & ~view.tokens("trust_mask"))
        out["judged"], out["accepted"] = judged.astype(float), (judged & (masked == 0)).astype(float)
    if view.has("reward"):
        reward = view.numbers("reward")
        out["paid"], out["reward"] = np.isfinite(reward).astype(float), np.where(np.isfinite(reward), reward, 0.0)
    return out

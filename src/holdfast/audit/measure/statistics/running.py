"""The drift over all tokens: overall, by position, length, step, environment; intervals by bootstrap over prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from holdfast.audit.measure.adding import Span
from holdfast.audit.measure.binned import Binned, power_bin
from holdfast.audit.measure.estimate import Estimate
from holdfast.audit.measure.statistics.tables import NamedTable, Quantiles, StepTable, Table
from holdfast.audit.measure.statistics.tails import Tails
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column
from holdfast.core.advise import PUBLISHED
from holdfast.types import BOUNDS

DEPTHS = 24
MOST_ENVIRONMENTS = 40
ESTIMATORS = ("k1", "k2", "k3", "abs_log", "kl_exact", *BOUNDS)
"""Per token, in nats: -r, r²/2, e^r - 1 - r and |r| of the log-ratio r, and the exact KL(engine‖trainer); what the
engine's likeliest tokens prove, KL in nats and TV from 0 to 1."""
REGIONS: Mapping[str, float] = {"kl": PUBLISHED["trm_max"], "tv": math.sqrt(PUBLISHED["trm_max"] / 2)}
"""The largest KL (TRM-Max's published threshold) and the largest TV, which no such KL exceeds: TV ≤ √(KL/2)."""
VERDICTS = ("inside", "outside", "undecided")
PROVEN = tuple(f"{name}_{verdict}" for name in REGIONS for verdict in VERDICTS)
COLUMNS = (
    *ESTIMATORS,
    "tokens",
    "kl_tokens",
    "bounded_tokens",
    "sequences",
    "judged",
    "accepted",
    "compared",
    "within",
    "bounded",
    *PROVEN,
    "reward",
    "paid",
)
"""Sums over sequences. `tokens`, `kl_tokens` and `bounded_tokens` are those that estimators, exact KL and bounds were
measured on, `judged` and `accepted` sequences with a recorded verdict and those with no token masked, `compared` and
`within` sequences with measured tokens and those that TRM-Max would keep at its published threshold, `bounded`
sequences with bounds and `kl_inside` to `tv_undecided` what these prove of each, `paid` those with a reward."""


@dataclass(frozen=True)
class Region:
    """Shares of the sequences with bounds: proven to stay inside a trust region, proven to leave it, and neither.

    Inside is where the divergence is at most `threshold` at every sampled context. The engine's likeliest tokens never
    prove that of a KL, since the trainer may all but exclude a token that is not among them: only an exact KL does.
    """

    divergence: str
    threshold: float
    inside: Estimate
    outside: Estimate
    undecided: Estimate


@dataclass
class Statistics:
    """Sums over measured tokens; every mean made of them is an estimate, since rollouts are a sample."""

    by_length: Table = field(default_factory=lambda: Table(COLUMNS))
    by_step: StepTable = field(default_factory=lambda: StepTable(COLUMNS))
    environments: NamedTable = field(default_factory=lambda: NamedTable(COLUMNS))
    by_depth: Binned = field(default_factory=lambda: Binned(DEPTHS))
    k3_by_depth: Binned = field(default_factory=lambda: Binned(DEPTHS))
    sizes: Quantiles = field(default_factory=Quantiles)
    tails: Tails = field(default_factory=Tails)
    paid: Span = field(default_factory=Span)
    """Smallest and largest reward that was logged."""

    def update(self, view: View) -> None:
        """Take in one chunk."""
        columns = _columns(view)
        self.by_length.add(power_bin(columns["own"], DEPTHS).tolist(), view.fold, columns)
        if view.has("step"):
            self.by_step.add_steps(view.step, view.fold, columns)
        if view.has("environment"):
            names = ["(not recorded)" if name is None else str(name) for name in view.chunk.words["environment"]]
            self.environments.add(names, view.fold, columns)
        if view.has("reward"):
            reward = view.numbers("reward")
            self.paid.add(reward[np.isfinite(reward)])
        if view.chunk.token_count and view.has("rollout_logprobs", "trainer_logprobs"):
            self.by_depth.add_tokens(view, view.depth, view.size)
            self.k3_by_depth.add_tokens(view, view.depth, view.k3)
            self.sizes.add(view.size[view.measured], view.token_fold[view.measured])
            self.tails.update(view)

    def mean(self, name: str) -> Estimate | None:
        """An estimator's mean per token over the whole run; None where it was not measured."""
        return self.by_length.mean(name, per(name))

    def regions(self) -> tuple[Region, ...]:
        """What the bounds prove of each sequence, by KL and by TV; nothing where the log holds none."""
        found = []
        for name, threshold in REGIONS.items():
            inside, outside, undecided = (self.by_length.mean(f"{name}_{verdict}", "bounded") for verdict in VERDICTS)
            if inside and outside and undecided:
                found.append(Region(name, threshold, inside, outside, undecided))
        return tuple(found)

    @property
    def exact(self) -> bool:
        """Whether the log holds exact KL."""
        return self.by_length.total("kl_tokens") > 0

    @property
    def by_environment(self) -> Table:
        """Sums by environment: the MOST_ENVIRONMENTS with the most sequences, and all others together."""
        return self.environments.largest(MOST_ENVIRONMENTS, "sequences")

    @property
    def rewards(self) -> tuple[float, float] | None:
        """Smallest and largest reward that was logged; None where none was."""
        return (self.paid.low, self.paid.high) if self.paid.low <= self.paid.high else None


def per(estimator: str) -> str:
    """What an estimator's sum is divided by."""
    return "bounded_tokens" if estimator in BOUNDS else "kl_tokens" if estimator == "kl_exact" else "tokens"


def _columns(view: View) -> dict[str, Column]:
    """[N] of every quantity of COLUMNS, and `own`, the policy's own tokens."""
    count = len(view.chunk)
    out: dict[str, Column] = {name: np.zeros(count) for name in COLUMNS}
    out["own"], out["sequences"] = view.sum(view.own), np.ones(count)
    if view.has(*BOUNDS):
        out |= _bound_columns(view)
    peak = None
    if view.has("rollout_logprobs", "trainer_logprobs"):
        out["tokens"] = view.sequence_measured
        out["k1"], out["abs_log"] = -view.sum(view.log_ratio), view.sequence_size
        out["k2"] = view.sum(view.log_ratio * view.log_ratio) / 2
        out["k3"] = view.sequence_k3
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


def _bound_columns(view: View) -> dict[str, Column]:
    """[N] of what the bounds say: their sums, and each sequence's verdict by KL and by TV."""
    known = view.own & view.given("kl_lower")

    def own(name: str) -> Column:
        return np.where(known, view.tokens(name), np.float32(0))

    exact = own("kl_exact") if view.has("kl_exact") else np.full(len(known), np.nan, np.float32)
    by_pinsker = np.sqrt(np.maximum(exact, 0) / 2)
    kl, low, high, largest = map(
        view.max, (own("kl_lower"), own("tv_lower"), np.fmin(own("tv_upper"), by_pinsker), exact)
    )
    verdicts = {
        "kl": (largest <= REGIONS["kl"], np.where(np.isnan(largest), kl, largest) > REGIONS["kl"]),
        "tv": ((high <= REGIONS["tv"]) & (low <= REGIONS["tv"]), low > REGIONS["tv"]),
    }
    tokens = view.sum(known)
    bounded = tokens > 0
    out = {name: view.sum(own(name)) for name in BOUNDS}
    out |= {"bounded_tokens": tokens, "bounded": bounded.astype(float)}
    for name, (inside, outside) in verdicts.items():
        for verdict, where in zip(VERDICTS, (inside, outside, ~inside & ~outside), strict=True):
            out[f"{name}_{verdict}"] = (bounded & where).astype(float)
    return out

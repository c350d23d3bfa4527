"""The drift divided among its causes: shares with intervals that add up to one, and what follows for staleness."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from holdfast.audit.judge.attribution.causes import AGES, SIZES, Causes, Q
from holdfast.audit.measure.binned import resampled
from holdfast.audit.measure.estimate import Estimate
from holdfast.audit.measure.extremes import CONFIDENT, DISAGREES
from holdfast.audit.read.columns import Column

FEWEST_TOKENS = 1000
USEFUL = 0.5
"""Rollouts of an age are of use while half of their effective sample size is left."""
SEEN = 0.005
"""The smallest share that is shown."""
SAID = {
    "numerics": "engine and trainer at equal weights: precision, kernels, batches",
    "temperature": "another temperature, or another scale of the logits, on one side",
    "support": "tokens drawn from a part of the vocabulary (top-p, top-k, min-p), and scored by the trainer on all",
    "experts": "tokens that another expert computed in the trainer",
    "disagreements": f"tokens that the engine gave at least {math.exp(CONFIDENT):g} and the trainer scores "
    f"{DISAGREES:g} nats lower: another precision of the head, a weight that was not synced",
    "staleness": "updates between sampling and training",
}
"""Each cause in words."""
SPREAD = 7 / 6
"""E m² / (E m)² of the mass m that a class of supports leaves out: 1 where it is one number, 4/3 where it is uniform
from none to twice its mean."""


@dataclass(frozen=True)
class Share:
    """One cause's share of all drift, with its interval over prompts."""

    cause: str
    share: Estimate

    @property
    def seen(self) -> bool:
        """Whether it is large enough to speak of."""
        return self.share.value >= SEEN or self.cause == "numerics"

    @property
    def said(self) -> str:
        """The cause in words."""
        return SAID[self.cause]


@dataclass(frozen=True)
class AgeClass:
    """Tokens whose weights were `first` to `last` updates old: their drift, and the effective sample size.

    `drift` is the mean of r²/2 a token in nats, `added` what each update of lag added to it, `ess` the effective share
    of whole sequences under the weight of all their tokens, (Σw)² / (n Σw²).
    """

    first: int
    last: int
    tokens: int
    drift: Estimate
    added: Estimate | None
    ess: Estimate | None


@dataclass(frozen=True)
class Attribution:
    """Where the drift comes from. `drift` is the mean of r²/2 a token, in nats, r = log p(trainer) - log p(engine).

    `shares` add up to one. `useful_age` is the largest age up to which every class keeps USEFUL of its effective
    sample size, None where the newest does not; `learning_rate` the factor on the learning rate at which the oldest
    class would just keep it, None where nothing tells. `missing` says what could not be told apart, and what to log.
    """

    drift: Estimate
    tokens: int
    shares: tuple[Share, ...]
    ages: tuple[AgeClass, ...]
    useful_age: int | None
    learning_rate: float | None
    missing: tuple[str, ...]


def attribute(causes: Causes) -> Attribution | None:
    """The drift of all tokens of known age divided among its causes; None where too few tokens have known drift.

    Independent causes add up in r²/2: with r = Σ r_i and E r_i r_j = 0, E r² = Σ E r_i². Staleness is what a token's
    drift is above that at equal weights, (1/K) Σ_a n_a (k_a - k_0) with K = Σ_a n_a k_a. What is there at equal weights
    is divided again: confident disagreements and rerouted tokens have what they add to the mean of the others; of the
    others a temperature has the share R² = Cov(x, r)² / (Var(x) E r²), x = log p + H, since to first order its
    log-ratio is (β - 1) x (the derivative of log p^β / Σ p^β at β = 1). A trainer that normalises over the whole
    vocabulary what was drawn from a part of it has the part's log mass as log-ratio, below 0 on average where other
    causes have a mean of about 0: its share is SPREAD Σ_c n_c (mean r of c)² / Σ r² over classes c of the part's size.
    """
    sums = causes.by_class()
    missing = []
    if sums[:, 0, Q["tokens"]].sum() < FEWEST_TOKENS:
        # Without ages all is taken as one: what is then called numerics may be staleness.
        sums = np.concatenate([sums.sum(1, keepdims=True), np.zeros_like(sums[:, :AGES])], 1)
        missing.append(
            "staleness is not told from the rest: "
            + (
                "too few tokens were sampled at equal weights"
                if causes.versions
                else "log weight_versions and the step"
            )
        )
    cells = sums[:, :AGES]
    total = cells.sum(0)
    if total[:, Q["tokens"]].sum() < FEWEST_TOKENS or not total[:, Q["k2"]].sum() > 0:
        return None
    if not total[0, Q["known"]]:
        missing.append("a wrong temperature is not told from the rest: log the trainer's entropy of each token")
    if not total[0, Q["routed"]]:
        missing.append("experts are not told from the rest: log them (`experts_changed`), if the model has any")
    if total[0, Q["supported"]] == 0:
        missing.append(
            "the sampling support is not told from the rest: log of how many tokens one was drawn (`support_size`)"
        )
    draws = resampled(cells.reshape(len(cells), -1)).reshape(-1, *total.shape)

    def estimate(statistic: Callable[[Column], Column]) -> Estimate:
        with np.errstate(invalid="ignore", divide="ignore"):
            found, value = statistic(draws), float(statistic(total[None])[0])
        found = found[np.isfinite(found)]
        if len(found) < 2:
            return Estimate(value, float("-inf"), float("inf"))
        low, high = np.quantile(found, [0.025, 0.975])
        return Estimate(value, float(low), float(high))

    shares = tuple(Share(name, estimate(lambda s, name=name: shares_of(s)[name])) for name in SAID)
    ages = tuple(_age_class(c, total, estimate) for c in np.flatnonzero(total[:, Q["tokens"]] > 0).tolist())
    return Attribution(
        drift=estimate(lambda s: s[..., Q["k2"]].sum(-1) / s[..., Q["tokens"]].sum(-1)),
        tokens=int(total[:, Q["tokens"]].sum()),
        shares=shares,
        ages=ages if len(ages) > 1 else (),
        useful_age=_useful(ages),
        learning_rate=_ceiling(ages),
        missing=tuple(missing),
    )


def shares_of(sums: Column) -> dict[str, Column]:
    """Shares by cause, [...] each, of sums [..., AGES, quantities]; they add up to one."""
    tokens, k2 = sums[..., Q["tokens"]], sums[..., Q["k2"]]
    fresh = {name: sums[..., 0, place] for name, place in Q.items()}
    floor = fresh["k2"] / fresh["tokens"] * tokens.sum(-1) / k2.sum(-1)
    others = fresh["k2"] - fresh["k2_disagreements"] - fresh["k2_rerouted"]
    plain = others / np.maximum(fresh["tokens"] - fresh["disagreements"] - fresh["rerouted"], 1)

    def added(name: str) -> Column:
        return (fresh[f"k2_{name}"] - fresh[name] * plain) / fresh["k2"]

    parts = {name: np.where(fresh[name] > 0, added(name), 0.0) for name in ("disagreements", "rerouted")}
    rest = 1 - parts["disagreements"] - parts["rerouted"]
    count = np.maximum(fresh["known"], 1)
    varied = fresh["xx"] - fresh["x"] ** 2 / count
    together = fresh["xr"] - fresh["x"] * fresh["r"] / count
    scale = np.where(fresh["known"] > 0, varied * fresh["rr"], 0)
    explained = np.where(scale > 0, together**2 / np.where(scale > 0, scale, 1), 0.0)
    shifts = ((fresh[f"restricted_{c}"], fresh[f"shift_{c}"]) for c in range(SIZES))
    shifted = SPREAD / 2 * sum((t * t / np.maximum(n, 1) for n, t in shifts), np.zeros_like(scale)) / others
    over = np.maximum(explained + shifted, 1)
    explained, shifted = explained / over, shifted / over
    return {
        "numerics": floor * rest * (1 - explained - shifted),
        "temperature": floor * rest * explained,
        "support": floor * rest * shifted,
        "experts": floor * parts["rerouted"],
        "disagreements": floor * parts["disagreements"],
        "staleness": 1 - floor,
    }


def _age_class(c: int, total: Column, estimate: Callable[[Callable[[Column], Column]], Estimate]) -> AgeClass:
    first, last = (c, c) if c < 2 else (1 << (c - 1), (1 << c) - 1)

    def drift(s: Column, c: int = c) -> Column:
        return s[..., c, Q["k2"]] / s[..., c, Q["tokens"]]

    def ess(s: Column) -> Column:
        n, w, ww = (s[..., c, Q[name]] for name in ("sequences", "weights", "squares"))
        return w * w / (n * ww)

    return AgeClass(
        first=first,
        last=last,
        tokens=int(total[c, Q["tokens"]]),
        drift=estimate(drift),
        added=estimate(lambda s: (drift(s) - drift(s, 0)) / ((first + last) / 2)) if c else None,
        ess=estimate(ess) if total[c, Q["sequences"]] >= 2 else None,
    )


def _useful(ages: tuple[AgeClass, ...]) -> int | None:
    useful = None
    for one in ages:
        if one.ess is None or one.ess.value < USEFUL:
            break
        useful = one.last
    return useful


def _ceiling(ages: tuple[AgeClass, ...]) -> float | None:
    """sqrt((log 2 - V_0) / (V_A - V_0)), V = -log ESS: what the lag A adds to V grows with the learning rate squared.

    V is the variance of a sequence's log-ratio where that is normal, and V_0 what engine and trainer are apart at equal
    weights.
    """
    if len(ages) < 2 or ages[0].ess is None or ages[-1].ess is None:
        return None
    start, end = (-math.log(max(one.ess.value, 1e-12)) for one in (ages[0], ages[-1]) if one.ess is not None)
    room = -math.log(USEFUL) - start
    return math.sqrt(room / (end - start)) if end > start and room > 0 else None

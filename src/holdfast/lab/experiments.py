"""The experiments of `holdfast lab`: bounds, masks and entropy laws, each against exact numbers, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.core import bounds, bounds_measured
from holdfast.errors import ConfigError
from holdfast.lab.bandit import (
    CONTROLS,
    EntropyChange,
    RewardLaw,
    Training,
    bonus_gap,
    entropy_change,
    fit_reward_law,
    ladder_arms,
    train,
)
from holdfast.lab.chains import CoinPair
from holdfast.lab.masks import (
    Mask,
    acceptance,
    bad_contexts,
    gradient_cosine,
    hit_probability,
    masked_error_weights,
    surrogate_noise,
)
from holdfast.lab.oracle import as_rollouts, bound_table, expectation, mask_certificate
from holdfast.lab.pairs import KINDS, make_pairs
from holdfast.lab.trees import error_weights, measure, worst_error

MASKS: tuple[Mask, ...] = get_args(Mask)


@dataclass(frozen=True)
class HorizonCurve:
    """The exact worst case of a Pinsker-tight pair and every bound on it (as proven, halved), per horizon."""

    kl: float
    horizons: tuple[int, ...]
    exact: Float[Tensor, " H"]
    published: dict[str, Tensor]
    own: dict[str, Tensor]


def bounds_by_horizon(kl: float = 1e-4, longest: int = 32768) -> HorizonCurve:
    """Fair coins `kl` nats apart at every token: the worst case is a binomial sum, so any horizon is exact."""
    _at_least("longest", longest, 2)
    coin = CoinPair.of_kl(kl)
    horizons = tuple(2**k for k in range(1, longest.bit_length()) if 2**k <= longest)
    tables = [
        bounds.table(
            horizon, kl=coin.kl, tv=coin.tv, chi2=coin.chi2, seq_kl=horizon * coin.kl, seq_tv=coin.seq_tv(horizon)
        )
        for horizon in horizons
    ]

    def curves(published: bool) -> dict[str, Tensor]:
        names = [name for name, bound in tables[0].items() if bound.published is published]
        return {name: torch.stack([table[name].halved.reshape(()) for table in tables]) for name in names}

    compensated = torch.tensor([coin.compensated(horizon) for horizon in horizons], dtype=torch.float64)
    return HorizonCurve(
        kl=kl,
        horizons=horizons,
        exact=torch.tensor([coin.worst_error(horizon) for horizon in horizons], dtype=torch.float64),
        published=curves(True),
        own=curves(False) | {"compensated": compensated},
    )


@dataclass(frozen=True)
class Tightness:
    """One bound over many enumerated pairs: how often it was broken, and bound / exact error per kind of pair.

    `tightest` is the smallest ratio of all pairs; `median` has one number per kind, in the order of `kinds`.
    """

    name: str
    violations: int
    tightest: float
    median: tuple[float, ...]


@dataclass(frozen=True)
class TreeTrial:
    """Every bound on `pairs` enumerated pairs of policies over V^T responses."""

    pairs: int
    vocabulary: int
    horizon: int
    kinds: tuple[str, ...]
    rows: tuple[Tightness, ...]


def bounds_on_trees(
    count: int = 2000, *, vocabulary: int = 4, horizon: int = 6, seed: int = 0, size: float = 0.1
) -> TreeTrial:
    """`count` random pairs of every kind, drift sizes spread over a factor of 100 around `size`, worst-case rewards."""
    _at_least("trees", count, 1)
    _at_least("horizon", horizon, 2)  # one token has no error to compare with
    generator = torch.Generator().manual_seed(seed)
    kinds = tuple(kind for kind in KINDS if kind != "tight" or vocabulary % 2 == 0)
    sizes = size * 10 ** torch.linspace(-1, 1, count, dtype=torch.float64)
    by_kind: list[dict[str, Tensor]] = []
    for kind in kinds:
        parts = []
        rows_at_once = max(1, 2**19 // vocabulary**horizon)
        for part in sizes.split(rows_at_once):
            pair = make_pairs(kind, part, vocabulary=vocabulary, horizon=horizon, generator=generator)
            drift, error = measure(pair), worst_error(error_weights(pair))
            values = {name: bound.halved for name, bound in bound_table(drift).items()}
            rollouts = as_rollouts(pair)
            shortfall, noise = bounds_measured.compensation(rollouts)
            values["path_measured"] = expectation(pair, bounds_measured.path(rollouts))
            values["compensated"] = expectation(pair, shortfall + noise.abs() / 2)
            error = error.where(error > 1e-13, torch.nan)  # below that an error is nothing but rounding
            parts.append({name: value / error for name, value in values.items()})
        by_kind.append({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    rows = []
    for name in by_kind[0]:
        ratios = [kind[name][~kind[name].isnan()] for kind in by_kind]
        pooled = torch.cat(ratios)
        rows.append(
            Tightness(
                name=name,
                violations=int((pooled < 1 - 1e-9).sum()),
                tightest=float(pooled.min()),
                median=tuple(float(ratio.median()) for ratio in ratios),
            )
        )
    return TreeTrial(count * len(kinds), vocabulary, horizon, kinds, tuple(sorted(rows, key=lambda row: row.median)))


@dataclass(frozen=True)
class MaskRow:
    """Means over many enumerated pairs at one share and size of bad contexts; what differs by mask is a dict.

    `error` is exact, for the worst reward; `noise` is the root mean square of one rollout's surrogate; the certificate
    is taken from the maxima of KL and TV over the contexts the mask trusts, or from the exact means as well. `cosine`
    is that of the masked gradient with the true one, for rewards drawn by a fair coin for each response.
    """

    share: float
    size: float
    hit: float
    accepted: float
    error: dict[str, float]
    noise: dict[str, float]
    certificate: dict[str, float]
    certificate_from_means: dict[str, float]
    cosine: dict[str, float]


def masks_on_trees(
    settings: Sequence[tuple[float, float]],
    *,
    count: int = 200,
    horizon: int = 8,
    delta: float = 0.01,
    background: float = 0.02,
    seed: int = 0,
) -> list[MaskRow]:
    """Error, noise and certificates of every mask where few contexts drift by a lot and all others by little.

    Binary trees of `horizon` tokens; per setting (share, size) a share of the contexts drifts with logit steps of that
    size, the rest with steps of `background`. A context is bad where KL exceeds `delta`.
    """
    _at_least("trees", count, 1)
    rows = []
    for share, size in settings:
        pair = make_pairs(
            "sparse",
            torch.full((count,), size, dtype=torch.float64),
            vocabulary=2,
            horizon=horizon,
            generator=torch.Generator().manual_seed(seed),
            share=share,
            background=background,
        )
        bad = bad_contexts(pair, delta)
        coins = torch.randint(2, (count, 2**horizon), generator=torch.Generator().manual_seed(seed + 1)).double()
        by_mask = {
            "error": [worst_error(masked_error_weights(pair, bad, mask)) for mask in MASKS],
            "noise": [surrogate_noise(pair, bad, mask) for mask in MASKS],
            "certificate": [mask_certificate(pair, bad, mask, known="maxima") for mask in MASKS],
            "certificate_from_means": [mask_certificate(pair, bad, mask) for mask in MASKS],
            "cosine": [gradient_cosine(pair, bad, mask, coins) for mask in MASKS],
        }
        rows.append(
            MaskRow(
                share=share,
                size=size,
                hit=float(hit_probability(pair, bad).mean()),
                accepted=float(acceptance(pair, bad).mean()),
                **{
                    key: {mask: float(value.mean()) for mask, value in zip(MASKS, values, strict=True)}
                    for key, values in by_mask.items()
                },
            )
        )
    return rows


@dataclass(frozen=True)
class EntropyTrial:
    """What every entropy control does to one bandit, and how well the laws describe it.

    `change` holds one entry per sampled step of the uncontrolled run; `fit` is R = -a e^H + b on that run.
    """

    values: Float[Tensor, " K"]
    alpha: float
    fixed_gap: float
    runs: tuple[Training, ...]
    change: EntropyChange
    fit: RewardLaw


def entropy_laws(*, arms: int = 50, steps: int = 4000, alpha: float = 0.1, rate: float = 1.0) -> EntropyTrial:
    """Train one bandit under every control, exactly, and check dH = -Cov(log π, dz) along the uncontrolled run."""
    _at_least("steps", steps, 2)
    values = ladder_arms(arms)
    runs = tuple(train(values, control, steps=steps, rate=rate, alpha=alpha) for control in CONTROLS)
    logits, visited, taken = torch.zeros_like(values), [], []
    for _ in range(steps):
        pi = logits.softmax(-1)
        step = rate * pi * (values - (pi * values).sum())
        visited.append(logits)
        taken.append(step)
        logits = logits + step
    free = next(run for run in runs if run.control == "none")
    return EntropyTrial(
        values=values,
        alpha=alpha,
        fixed_gap=bonus_gap(values, alpha),
        runs=runs,
        change=entropy_change(torch.stack(visited), torch.stack(taken)),
        fit=fit_reward_law(free.entropy, free.reward),
    )


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} is {value}, allowed is at least {least}")

"""Thresholds before training: what was measured at equal weights, drawn out to the length and staleness planned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from holdfast.audit.judge.fixes import FIXES, settings
from holdfast.core.advise import Advice, advise
from holdfast.core.bounds_measured import sampled_drift
from holdfast.errors import DataError
from holdfast.types import Batch, Rollout, TokenStats

POSITIONS = 1 << 20
"""Of the rollouts that are made up, at most: rows times length."""
FEWEST_ROWS, MOST_ROWS = 32, 256
REMEDIES = {"trm_max": "sequence_mask", "trm_avg": "mean_mask", "ln_trm": "length_neutral_mask"}
"""Masks by their names in `core.advise`, and the remedy that sets each."""


@dataclass(frozen=True)
class Proposal:
    """Thresholds for training, and the lines that set them.

    `factor` is by how much all log-ratios were stretched for staleness; `kl` is the mean KL per token measured at
    equal weights, `planned_kl` with the staleness planned. `assumed` says in sentences what was taken for granted.
    """

    advice: Advice
    length: int
    staleness: int
    kl: float
    planned_kl: float
    factor: float
    lines: dict[str, str]
    assumed: tuple[str, ...]


def propose(
    rollouts: Sequence[Rollout], *, length: int, staleness: int, update_kl: float, framework: str, seed: int
) -> Proposal:
    """`core.advise` on rollouts of the planned length, with the drift of the planned staleness.

    A rollout of the planned length is made up of measured ones, drawn at random and put end to end, so that its tokens
    drift as the measured ones do. `staleness` updates of KL δ each in one direction add s² δ to the mean KL κ at equal
    weights (a KL is quadratic in the log-ratio to leading order): log-ratios are multiplied by √((κ + s² δ) / κ). The
    measured drift alone, at the same length, is the noise floor. One update is planned for where none is: the policy
    moves while it trains on a batch, and thresholds made of an exact engine's noise alone would then reject everything.

    Raises:
        DataError: nothing was measured on both sides.
    """
    batch, stats = tensors(rollouts)
    measured = sampled_drift(batch, stats)
    tokens = int(measured.mask.sum())
    per_token = measured.k3 if measured.kl is None else measured.kl
    kl = float(per_token[measured.mask].mean()) if tokens else math.nan
    if not math.isfinite(kl):
        raise DataError("no token has log-probabilities of both engine and trainer: nothing to base thresholds on")
    planned_kl = kl + max(staleness, 1) ** 2 * update_kl
    factor = math.sqrt(planned_kl / max(kl, 1e-12))
    floor = drawn_out(batch, stats, length, seed)
    noise = sampled_drift(*floor)
    advice = advise(*stretched(*floor, factor), horizon=length, noise=noise)
    return Proposal(
        advice=advice,
        length=length,
        staleness=staleness,
        kl=kl,
        planned_kl=planned_kl,
        factor=factor,
        lines=threshold_lines(advice, framework),
        assumed=_assumed(batch.response_mask.shape[1], length, staleness, update_kl),
    )


def tensors(rollouts: Sequence[Rollout]) -> tuple[Batch, TokenStats]:
    """Rollouts with both log-probabilities, right padded; exact KL where all have it."""
    lengths = torch.tensor([len(r.response_ids) for r in rollouts])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]

    def padded(name: str) -> Tensor | None:
        columns = [getattr(rollout, name) for rollout in rollouts]
        if any(column is None for column in columns):
            return None
        flat = torch.tensor([value for column in columns for value in column], dtype=torch.float64)
        return torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(mask, flat)

    engine, trainer, kl = padded("rollout_logprobs"), padded("trainer_logprobs"), padded("kl_exact")
    if engine is None or trainer is None:
        raise DataError("a rollout lacks the log-probabilities of one side: nothing to base thresholds on")
    known = None if kl is None or not bool(kl.isfinite().all()) else kl.clamp(min=0)
    return Batch(torch.ones(len(rollouts)), mask, rollout_logprobs=engine), TokenStats(trainer, kl_rollout=known)


def drawn_out(batch: Batch, stats: TokenStats, length: int, seed: int) -> tuple[Batch, TokenStats]:
    """Rollouts of `length` tokens, made of the batch's own, drawn at random and put end to end."""
    mask, engine = batch.response_mask, batch.rollout_logprobs
    assert engine is not None
    rows = min(MOST_ROWS, max(FEWEST_ROWS, POSITIONS // length))
    generator = torch.Generator().manual_seed(seed)
    counts = mask.sum(-1)
    filled = counts.nonzero().flatten()
    wanted, drawn = rows * length, torch.empty(0, dtype=torch.long)
    while int(counts[drawn].sum()) < wanted:
        more = wanted // int(counts[filled].sum()) + 1
        drawn = torch.cat([drawn, filled[torch.randint(len(filled), (more * len(filled),), generator=generator)]])
    sizes = counts[drawn]
    within = torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    places = ((drawn * mask.shape[1]).repeat_interleave(sizes) + within)[:wanted].view(rows, length)
    kl = stats.kl_rollout
    whole = torch.ones(rows, length, dtype=torch.bool)
    return (
        Batch(torch.ones(rows), whole, rollout_logprobs=engine.flatten()[places]),
        TokenStats(stats.logprobs.flatten()[places], kl_rollout=None if kl is None else kl.flatten()[places]),
    )


def stretched(batch: Batch, stats: TokenStats, factor: float) -> tuple[Batch, TokenStats]:
    """The same with every log-ratio times `factor`, and a KL times its square."""
    engine, kl = batch.rollout_logprobs, stats.kl_rollout
    assert engine is not None
    moved = engine + factor * (stats.logprobs - engine)
    return batch, replace(stats, logprobs=moved, kl_rollout=None if kl is None else kl * factor**2)


def threshold_lines(advice: Advice, framework: str) -> dict[str, str]:
    """Mask → the lines that set it, in the framework's words."""
    found = {}
    for rule, recommendation in advice.recommendations.items():
        remedy = REMEDIES[rule]
        given = {key: value for key, value in recommendation.settings.items() if key in FIXES[remedy].numbers}
        if rule == "ln_trm":
            given["delta_avg"] = advice.recommendations["trm_avg"].point.threshold
        numbers = {key: float(value) for key, value in given.items()}
        found[rule] = settings(remedy, **numbers)[framework]
    return found


def _assumed(measured: int, length: int, staleness: int, update_kl: float) -> tuple[str, ...]:
    said = []
    if length > measured:
        said.append(
            f"responses of {length:,} tokens drift at every token as those of at most {measured:,} did here (measure "
            "with a larger --sampling.max_tokens where the page shows drift that grows with position)"
        )
    if staleness:
        said.append(
            f"one update moves the policy by a KL of {update_kl:.2g} per token, {staleness} in one direction by "
            f"{staleness**2 * update_kl:.2g} (--update-kl: take the number of a run of yours)"
        )
    else:
        said.append(
            "training is in step: rollouts of the newest weights (--staleness plans for older ones). Room is left for "
            f"one update of a KL of {update_kl:.2g} per token while a batch is trained on (--update-kl)"
        )
    return tuple(said)

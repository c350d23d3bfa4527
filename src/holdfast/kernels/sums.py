"""Sums over a slice of the vocabulary, how slices are joined, and the statistics that follow from the whole.

A slice k holds, per row, its peak m = max z, the sums s = Σ e^(z-m), t = Σ e^(z-m)(z-m), q = Σ e^(2(z-m)),
w = Σ e^(2(z-m))(z-m), and against the rollout policy's logits z_r, with Δ = z_r - z and e_r = e^(z_r - max z_r):

    c = Σ e_r Δ / Σ e_r,   u = Δ - c,   A = Σ e_r u,   B = Σ e_r (e^-u - 1 + u),   X = Σ e_r (e^-u - 1)²

Every slice is centred at its own c, and `join` moves the sums to a common centre exactly. That is what keeps
KL(rollout‖current) = A + log1p(B - A) (A, B over Σ e_r) right at 1e-9, where log-sum-exps cancel. Tiles of one
matrix, splits of a GPU grid and ranks of a vocabulary-parallel head are all slices: there is one `join` for the three.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from holdfast.kernels.head import ROLLOUT_OUTPUTS, HeadStats, VocabShard

PEAK, MASS, FIRST, SQUARE, SQUARE_FIRST, R_PEAK, R_MASS, R_CENTRE, R_DRIFT, R_BEND, R_SPREAD, PICKED = range(12)
SQUARES = frozenset({"sum_p2", "entropy_change"})
# Below this argument e^-u - 1 + u is summed as a series: the closed form loses half its digits there.
SERIES = 0.25


@dataclass(frozen=True)
class Totals:
    """The joined sums of some rows in float64, and their log-sum-exp: what every statistic is computed from."""

    sums: Float64[Tensor, "F R"]
    lse: Float64[Tensor, " R"]

    @property
    def rollout_lse(self) -> Float64[Tensor, " R"]:
        """Log-sum-exp of the rollout policy's logits."""
        return self.sums[R_PEAK] + self.sums[R_MASS].log()


def bend(u: Tensor) -> Tensor:
    """e^-u - 1 + u without cancellation near 0."""
    u2 = u * u
    series = u2 * (0.5 - u * (1 / 6 - u * (1 / 24 - u * (1 / 120 - u * (1 / 720 - u / 5040)))))
    return torch.where(u.abs() < SERIES, series, torch.expm1(-u) + u)


def slice_sums(
    logits: Float[Tensor, "R C"],
    places: tuple[Int[Tensor, "R K"], Bool[Tensor, "R K"]],
    outputs: frozenset[str],
    scratch: list[Tensor],
) -> Float64[Tensor, "F R"]:
    """The sums of one tile; `places` are columns of the ids and whether they lie in this tile.

    The sampled token is summed apart, in float64: where it has nearly all the mass, 1 - p_y is a sum of small numbers
    that a 1 beside them would round away. `logits` is left as it was; scratch[1] holds e^(z - peak) afterwards,
    with 0 at the sampled token. Where there is a rollout policy, scratch[2] holds its logits before.
    """
    shifted, weights, *rollout = scratch
    columns, inside = places
    sums = logits.new_zeros((PICKED + columns.shape[1], logits.shape[0]), dtype=torch.float64)
    peak = logits.amax(dim=1)
    picked = logits.gather(1, columns)
    own_shift = (picked[:, 0] - peak).double()
    own = torch.where(inside[:, 0], own_shift.exp(), 0)
    torch.exp(torch.sub(logits, peak[:, None], out=shifted), out=weights)
    weights.scatter_(1, columns[:, :1], torch.where(inside, 0, weights.gather(1, columns))[:, :1])
    sums[PEAK] = peak
    sums[MASS] = weights.sum(dim=1) + own
    if outputs:
        sums[FIRST] = shifted.mul_(weights).sum(dim=1) + own * own_shift
    if outputs & SQUARES:
        sums[SQUARE_FIRST] = shifted.mul_(weights).sum(dim=1) + own**2 * own_shift
        sums[SQUARE] = torch.mul(weights, weights, out=shifted).sum(dim=1) + own**2
    sums[PICKED:] = torch.where(inside, picked, 0).T
    if rollout:
        _rollout_sums(logits, sums, [shifted, *rollout], "chi2_rollout" in outputs)
    return sums


def _rollout_sums(logits: Tensor, sums: Tensor, tiles: list[Tensor], spread: bool) -> None:
    scratch, reference, weights = tiles
    # A token outside the rollout policy's support (-inf) has no weight in E_r; a finite stand-in keeps 0·∞ away.
    peak = reference.clamp_min_(-1e30).amax(dim=1)
    torch.sub(reference, peak[:, None], out=weights).exp_()
    mass = weights.sum(dim=1)
    change = reference.sub_(logits)
    centre = torch.mul(weights, change, out=scratch).sum(dim=1) / mass
    change.sub_(centre[:, None])
    sums[R_PEAK], sums[R_MASS], sums[R_CENTRE] = peak, mass, centre
    sums[R_DRIFT] = torch.mul(weights, change, out=scratch).sum(dim=1)
    drop = torch.neg(change, out=scratch).expm1_()
    # Not `bend`, which is four times the work: what cancels here, 1e-7·|u|, is below the rounding of the logits in u.
    sums[R_BEND] = change.add_(drop).mul_(weights).sum(dim=1)
    if spread:
        sums[R_SPREAD] = drop.square_().mul_(weights).sum(dim=1)


def join(parts: Float64[Tensor, "P F R"], outputs: frozenset[str]) -> Totals:
    """Join the sums of P slices that together are the vocabulary, or a larger slice of it."""
    peak = parts[:, PEAK].amax(dim=0)
    shift = parts[:, PEAK] - peak
    scale = shift.exp()
    sums = torch.zeros_like(parts[0])
    sums[PEAK] = peak
    sums[MASS] = (parts[:, MASS] * scale).sum(dim=0)
    sums[FIRST] = ((parts[:, FIRST] + shift * parts[:, MASS]) * scale).sum(dim=0)
    sums[PICKED:] = parts[:, PICKED:].sum(dim=0)
    if outputs & SQUARES:
        sums[SQUARE] = (parts[:, SQUARE] * scale**2).sum(dim=0)
        sums[SQUARE_FIRST] = ((parts[:, SQUARE_FIRST] + shift * parts[:, SQUARE]) * scale**2).sum(dim=0)
    if outputs & ROLLOUT_OUTPUTS:
        _join_rollout(parts, sums)
    return Totals(sums, peak + sums[MASS].log())


def _join_rollout(parts: Tensor, sums: Tensor) -> None:
    peak = parts[:, R_PEAK].amax(dim=0)
    scale = (parts[:, R_PEAK] - peak).exp()
    mass, drift, curve, spread = (scale * parts[:, i] for i in (R_MASS, R_DRIFT, R_BEND, R_SPREAD))
    total = mass.sum(dim=0)
    centre = (mass * parts[:, R_CENTRE]).sum(dim=0) / total
    # A slice without weight stays out: its own centre may be the stand-in's, -1e30.
    move = torch.where(mass > 0, parts[:, R_CENTRE] - centre, 0)
    fall = torch.expm1(-move)
    drop = curve - drift
    sums[R_PEAK], sums[R_MASS], sums[R_CENTRE] = peak, total, centre
    sums[R_DRIFT] = (drift + move * mass).sum(dim=0)
    sums[R_BEND] = ((fall + 1) * curve + bend(move) * mass - drift * fall).sum(dim=0)
    sums[R_SPREAD] = ((fall + 1) ** 2 * spread + 2 * (fall + 1) * fall * drop + fall**2 * mass).sum(dim=0)


def reduce_shards(totals: Totals, shard: VocabShard | None, outputs: frozenset[str]) -> Totals:
    """Join the totals of all ranks: one all-gather, then the same sums in the same order on every rank."""
    if shard is None:
        return totals
    from torch import distributed

    gathered = [torch.empty_like(totals.sums) for _ in range(distributed.get_world_size(shard.group))]
    distributed.all_gather(gathered, totals.sums.contiguous(), group=shard.group)
    return join(torch.stack(gathered), outputs)


def sum_shards(values: Tensor, shard: VocabShard | None) -> Tensor:
    """The sum over all ranks, in place; the values themselves where the head is whole."""
    if shard is not None:
        from torch import distributed

        distributed.all_reduce(values, group=shard.group)
    return values


def statistics(totals: Totals, outputs: frozenset[str], dtype: torch.dtype) -> HeadStats:
    """Every per-row statistic except TV, which needs a second look at the logits (see `tv_terms`)."""
    sums, lse = totals.sums, totals.lse
    mean_shift = sums[FIRST] / sums[MASS]
    entropy = (sums[MASS].log() - mean_shift).clamp_min(0)
    logprobs = sums[PICKED:] - lse
    values: dict[str, Tensor] = {"logprobs": logprobs[0]}
    if "entropy" in outputs:
        values["entropy"] = entropy
    if outputs & SQUARES:
        values |= _concentration(sums, logprobs[0], entropy, outputs)
    if "kl_rollout" in outputs:
        values["kl_rollout"] = _kl(totals)
    if "chi2_rollout" in outputs:
        values["chi2_rollout"] = _chi2(sums)
    if logprobs.shape[0] > 1:
        values["gathered_logprobs"] = logprobs[1:].T
    return HeadStats(**{name: value.to(dtype) for name, value in values.items()})


def _concentration(sums: Tensor, logprob: Tensor, entropy: Tensor, outputs: frozenset[str]) -> dict[str, Tensor]:
    sum_p2 = sums[SQUARE] / sums[MASS] ** 2
    sum_p2_logp = sums[SQUARE_FIRST] / sums[MASS] ** 2 - sums[MASS].log() * sum_p2
    change = sum_p2_logp + entropy * sum_p2 - logprob.exp() * (logprob + entropy)
    both = {"sum_p2": sum_p2, "entropy_change": change}
    return {name: value for name, value in both.items() if name in outputs}


def _kl(totals: Totals) -> Tensor:
    sums = totals.sums
    drift, excess = sums[R_DRIFT] / sums[R_MASS], (sums[R_BEND] - sums[R_DRIFT]) / sums[R_MASS]
    centred = drift + torch.log1p(excess)
    direct = sums[R_CENTRE] + drift - (totals.rollout_lse - totals.lse)
    # Far apart, e^-u overflows (or the rollout policy's support does not cover the vocabulary): then nothing
    # cancels in the direct form either.
    return torch.where(excess < 1, centred, direct).clamp_min(0)


def _chi2(sums: Tensor) -> Tensor:
    excess = (sums[R_BEND] - sums[R_DRIFT]) / sums[R_MASS]
    chi2 = (sums[R_SPREAD] / sums[R_MASS] - excess**2) / (1 + excess) ** 2
    return torch.where(torch.isfinite(chi2), chi2, torch.inf).clamp_min(0)


def log_ratio_offset(totals: Totals) -> Float64[Tensor, " R"]:
    """lse_r - lse, without cancellation where the two policies are close."""
    sums = totals.sums
    excess = (sums[R_BEND] - sums[R_DRIFT]) / sums[R_MASS]
    return torch.where(excess < 1, sums[R_CENTRE] - torch.log1p(excess), totals.rollout_lse - totals.lse)


def tv_terms(logits: Tensor, rollout_logits: Tensor, totals: Totals) -> Float[Tensor, " R"]:
    """½ Σ |p - p_r| over one tile, as ½ Σ p_r |expm1(log p/p_r)| so that small differences keep their digits."""
    rollout_lse = totals.rollout_lse.to(logits.dtype)[:, None]
    offset = log_ratio_offset(totals).to(logits.dtype)[:, None]
    weight = (rollout_logits - rollout_lse).exp_()
    change = torch.expm1(logits - rollout_logits + offset).abs_().mul_(weight)
    # Outside the rollout policy's support (weight 0) the whole of p counts.
    outside = (logits - totals.lse.to(logits.dtype)[:, None]).exp_()
    return torch.where(weight > 0, change, outside).sum(dim=1) / 2

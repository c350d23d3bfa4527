"""The error bounds themselves, as plain formulas over float64 tensors: one function, one inequality, no checking.

All bound |Error| = |J(θ) - J(p) - L'|, where p is the rollout policy, θ the current one, J in [0, 1] the expected
reward, and L' = E_p[R Σ_t (ρ_t - 1)] the surrogate gain. Notation: T horizon, ε and δ the largest TV and KL(p‖θ) of
any context, x the largest χ²(c) = E_p[(ρ - 1)²], S and V the KL and TV of whole sequences, D̄_t = E_p TV(c_t).
Every formula costs O(1) in T unless it takes numbers per position; all broadcast over their tensors. The numbers in
brackets lead to the statements and proofs in docs/theory/bounds.md; `bounds` checks inputs and makes the table.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.core.divergences import expm1_minus

Value = Float[Tensor, "*shape"]
Positions = Float[Tensor, "*shape T"]

_LOG_MAX = math.log(torch.finfo(torch.float64).max) - 1e-9
_ZETA_MINUS_HALF = -0.2078862249773545660173067
_CHUNK = 1 << 16


def pinsker(kl: Value) -> Value:
    """TV ≤ min(1, √(KL/2)): the largest TV that a KL in nats allows."""
    return (kl / 2).sqrt().clamp(max=1)


def classical(horizon: int, tv: Value) -> Value:
    """2 T (T - 1) ε², and T (T - 1) δ where ε = √(δ/2). [1] (TRPO's bound, as stated in arXiv 2512.23075)."""
    return 2.0 * horizon * (horizon - 1) * tv.square()


def coupling(horizon: int, tv: Value) -> Value:
    """4 ε Σ_t min(1, (t - 1) ε). [2] (TRM, arXiv 2512.23075, coupling)."""
    return 4 * tv * _shift_sum(horizon, tv, torch.full_like(tv, torch.inf))


def pinsker_marginal(horizon: int, tv: Value, kl: Value) -> Value:
    """4 ε Σ_t min(1, √((t - 1) δ / 2)); with ε = √(δ/2) about (4/3) T^1.5 δ. [3] (TRM, arXiv 2512.23075)."""
    return 4 * tv * _shift_sum(horizon, torch.ones_like(kl), kl)


def mixed(horizon: int, tv: Value, sequence_tv: Value) -> Value:
    """4 T ε V; with Pinsker on both, 2 T √(δ S). [4] (TRM, arXiv 2512.23075)."""
    return 4 * horizon * tv * sequence_tv


def mixed_prefixes(horizon: int, tv: Value, sequence_tv: Value, prefix_tv: Positions | None = None) -> Value:
    """2 ε Σ_{t<T} V_t ≤ 2 (T - 1) ε V, V_t the TV of the first t tokens, or bounds on it. [4a]

    Half of `mixed` less what its proof gives away: the first token has no prefix to part, and a prefix parts less than
    the whole. `prefix_tv` [..., T] has V_t at t; each is capped at V.
    """
    if prefix_tv is None:
        return 2 * (horizon - 1) * tv * sequence_tv
    return 2 * tv * torch.minimum(prefix_tv[..., :-1], sequence_tv[..., None]).sum(-1)


def adaptive(tv_by_position: Positions, tv: Value, kl: Value) -> Value:
    """4 Σ_t D̄_t min(1, (T - t) ε, √((T - t) δ / 2)). [5] (TRM, arXiv 2512.23075, adaptive*).

    ε = 1 gives the KL form and δ = ∞ the TV form. With the KL form, D̄_t ≤ √(KL_t / 2) and Cauchy-Schwarz this is at
    most √2 T √(δ S): it is never more than √2 / 2 of `mixed` where that is not capped. [5a]
    """
    left = torch.arange(tv_by_position.shape[-1] - 1, -1, -1, dtype=torch.float64)
    return 4 * (tv_by_position * _shift(left, tv[..., None], kl[..., None])).sum(-1)


def adaptive_uniform(horizon: int, tv: Value, kl: Value) -> Value:
    """`adaptive` with D̄_t = ε at every position: 4 ε Σ_j min(1, j ε, √(j δ / 2)), j = 0 … T - 1."""
    return 4 * tv * _shift_sum(horizon, tv, kl)


def linear(sum_tv: Value) -> Value:
    """4 Σ_t D̄_t. [6] (TRM, arXiv 2512.23075)."""
    return 4 * sum_tv


def linear_and_sequence(sum_tv: Value, sequence_tv: Value) -> Value:
    """V + Σ_t D̄_t, with V ≤ min(1, Σ_t D̄_t): never above half of `linear`. [6a]"""
    return sum_tv + torch.minimum(sequence_tv, sum_tv).clamp(max=1)


def path_uniform(horizon: int, tv: Value) -> Value:
    """T (T - 1) ε²: the path bound [8] E_p[Σ_t |ρ_t - 1| Σ_{k>t} TV(c_k)] where no rollouts were measured."""
    return 1.0 * horizon * (horizon - 1) * tv.square()


def cauchy_schwarz(chi2_by_position: Positions, kl_by_position: Positions) -> Value:
    """(1/√2) Σ_t √(E_p χ²(c_t) · Σ_{k>t} E_p KL(c_k)). [9] Means only, no maximum over contexts."""
    after = kl_by_position[..., 1:].flip(-1).cumsum(-1).flip(-1)  # no difference of sums: a large first KL hides them
    return (chi2_by_position[..., :-1] * after / 2).sqrt().sum(-1)


def cauchy_schwarz_uniform(horizon: int, chi2: Value, kl: Value, sequence_kl: Value) -> Value:
    """(1/√2) √x Σ_j √min(j δ, S), j = 0 … T - 1: `cauchy_schwarz` from maxima and, where it is known, S."""
    last = _count(sequence_kl / kl, horizon)
    sums = kl.sqrt() * _sum_sqrt(last) + (horizon - 1 - last) * sequence_kl.sqrt()
    return (chi2 / 2).sqrt() * sums


def martingale(horizon: int, chi2: Value, reward_sd: Value | float = 0.5) -> Value:
    """s √((1 + x)^T - 1 - T x), about s x T / √2 while x T is small. [10]

    s = √(E Var(R | prompt)), `reward_sd`, is what one prompt's rewards scatter: at most ½, 0 where every prompt is
    always solved or never. The closed form of s √(x Σ_{k<T} ((1 + x)^k - 1)). With a = log(1 + x) it is
    s √(h(T a) - T h(a)), h(u) = e^u - 1 - u, which does not cancel. From T a = 40 on only s e^(T a / 2) is left in 16
    digits; where e^(T a / 2) has no float64 it is taken as the largest.
    """
    if horizon == 1:
        return torch.zeros_like(chi2 * reward_sd)
    rate = torch.log1p(chi2)
    exponent = horizon * rate
    small = expm1_minus(exponent.clamp(max=40.0)) - horizon * expm1_minus(rate)
    large = torch.exp((exponent / 2 - math.log(2)).clamp(max=_LOG_MAX))
    return torch.where(exponent < 40.0, small.clamp(min=0).sqrt() / 2, large) * (2 * reward_sd)


def survival(tv_by_position: Positions, tv: Value, kl: Value) -> Value:
    """2 Σ_t D̄_t min(1 - (1 - ε)^(T - t), √((T - t) δ / 2)). [7]

    `adaptive`, halved, with the coupling's exact probability of parting within j tokens instead of j ε. D̄_t counts
    rollouts that ended before t as zero: the end of a sequence absorbs, both policies agree on it.
    """
    left = torch.arange(tv_by_position.shape[-1] - 1, -1, -1, dtype=torch.float64)
    return 2 * (tv_by_position * _future(left, tv[..., None], kl[..., None])).sum(-1)


def survival_uniform(horizon: int, tv: Value, kl: Value) -> Value:
    """`survival` with D̄_t = ε at every position, summed in chunks of positions to bound the memory."""
    total = torch.zeros_like(tv + kl, dtype=torch.float64)  # torch.broadcast_shapes would import SymPy: half a second
    for start in range(0, horizon, _CHUNK):
        left = torch.arange(start, min(start + _CHUNK, horizon), dtype=torch.float64)
        total = total + _future(left, tv[..., None], kl[..., None]).sum(-1)
    return 2 * tv * total


def sequence_kl(sum_kl: Value) -> Value:
    """S = Σ_t E_p KL(c_t): the error is at most the KL of whole sequences, whatever T, with no maximum. [11]

    Since W = Π ρ_t gives W - 1 - Σ(ρ_t - 1) = k3(W) - Σ_t k3(ρ_t) with k3(u) = u - 1 - log u ≥ 0, and both parts have
    the mean S. More exactly: -E_p[R Σ_t k3_t] ≤ Error ≤ E_p[(1 - R) Σ_t k3_t].
    """
    return sum_kl


def split(horizon: int, chi2: Value, tv: Value, kl: Value) -> Value:
    """min over k of ½ √((1 + x)^k - 1 - k x + (T - k) x) + F(T - k). [12]

    F(j) is the most that j further tokens can part the policies. The error is taken by the martingale [10] up to
    token k and by its two parts after it, so it grows like √T, not like e^(T x). Candidates: k = T, k = 0, and the
    stationary point (1 + x)^k log(1 + x) = 2 x; any k gives a bound.
    """
    best = martingale(horizon, chi2)
    rate = torch.log1p(chi2)
    stationary = (torch.log(2 * chi2 / rate) / rate).nan_to_num(nan=0.0, posinf=0.0).clamp(0, horizon).floor()
    for k in (torch.zeros_like(chi2), stationary):
        left = horizon - k
        second_moment = (expm1_minus(k * rate) - k * expm1_minus(rate)).clamp(min=0) + left * chi2
        by_chi2 = torch.expm1((left * rate).clamp(max=40.0)).sqrt() / 2
        parting = torch.minimum(_future(left, tv, kl), by_chi2)
        best = torch.minimum(best, second_moment.sqrt() / 2 + parting)
    return best


def two_parts(sum_chi2: Value, sequence_tv: Value) -> Value:
    """V + ½ √(Σ_t E_p χ²(c_t)): `split` at k = 0 with measured means instead of maxima. [12a]"""
    return sequence_tv + sum_chi2.sqrt() / 2


def _shift(tokens: Tensor, tv: Tensor, kl: Tensor) -> Tensor:
    """min(1, j ε, √(j δ / 2)): how far j tokens can part two policies."""
    by_kl = torch.where(tokens > 0, (tokens * kl / 2).sqrt(), torch.zeros_like(tokens))
    return torch.minimum(tokens * tv, by_kl).clamp(max=1)


def _future(tokens: Tensor, tv: Tensor, kl: Tensor) -> Tensor:
    """min(1 - (1 - ε)^j, √(j δ / 2)): the same with the coupling's exact probability of parting."""
    parted = torch.where(tokens > 0, -torch.expm1(tokens * torch.log1p(-tv)), torch.zeros_like(tokens * tv))
    return torch.minimum(parted, _shift(tokens, torch.ones_like(tv), kl))


def _shift_sum(horizon: int, tv: Tensor, kl: Tensor) -> Tensor:
    """Σ_{j<T} min(1, j ε, √(j δ / 2)) in closed form: linear up to δ/(2ε²), a root up to 2/δ, one after that."""
    linear_to = _count(torch.minimum(1 / tv, kl / (2 * tv.square())), horizon)
    root_to = torch.maximum(linear_to, _count(2 / kl, horizon))
    roots = _sum_sqrt(root_to) - _sum_sqrt(linear_to)
    by_root = torch.where(root_to > linear_to, (kl / 2).sqrt() * roots, torch.zeros_like(roots))
    return tv * linear_to * (linear_to + 1) / 2 + by_root + (horizon - 1 - root_to)


def _count(limit: Tensor, horizon: int) -> Tensor:
    """How many of j = 1 … T - 1 are at most this limit (0/0 means that nothing limits them)."""
    return limit.nan_to_num(nan=float(horizon), posinf=float(horizon)).clamp(0, horizon - 1).floor()


def _sum_sqrt(n: Tensor) -> Tensor:
    """Σ_{j=1}^n √j by Euler-Maclaurin from n = 20 on (error below 1e-13), summed below that."""
    table = torch.arange(20, dtype=torch.float64).sqrt().cumsum(0)
    m = n.clamp(min=20)
    tail = m.sqrt() * (2 * m / 3 + 0.5 + 1 / (24 * m) - 1 / (1920 * m**3) + 1 / (9216 * m**5))
    return torch.where(n < 20, table[n.clamp(max=19).long()], tail + _ZETA_MINUS_HALF)

"""Small autoregressive policies, enumerated: every response of T tokens over V symbols, so every number is exact.

A batch of N pairs of policies is a tree of depth T: `rollout[t]` and `current[t]` hold the log-probabilities of the
next token at each of the V^t contexts, shape [N, V^t, V] (context c of depth t has children c·V + token). Everything
is a tensor operation over the batch, so ten thousand trees cost no more than one loop over T. Use float64.

Notation: p rollout, q current, ρ = q/p, W_t = Π_{s≤t} ρ_s, c_t the context of token t, d_t its distribution under p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.core.divergences import expm1_minus
from holdfast.errors import DataError

Levels = tuple[Tensor, ...]
"""One tensor per depth: [N, V^t] for contexts, [N, V^t, V] for tokens."""


@dataclass(frozen=True)
class TreePair:
    """N pairs of policies over all V^T responses: log-probabilities per depth, [N, V^t, V] each, V ≥ 2, T ≥ 1.

    Both must give every token a positive probability. DataError for levels that do not form a tree.
    """

    rollout: Levels
    current: Levels

    def __post_init__(self) -> None:
        shapes = [tuple(level.shape) for level in self.rollout]
        if not shapes or shapes != [tuple(level.shape) for level in self.current]:
            raise DataError(f"a pair needs levels of one shape in both policies, at least one; rollout has {shapes}")
        count, _, vocabulary = shapes[0]
        expected = [(count, vocabulary**depth, vocabulary) for depth in range(len(shapes))]
        if shapes != expected:
            raise DataError(f"levels of shape {shapes} are no tree: depth t needs [N, V^t, V], here {expected}")

    @property
    def horizon(self) -> int:
        return len(self.rollout)

    @property
    def vocabulary(self) -> int:
        return self.rollout[0].shape[-1]


@dataclass(frozen=True)
class Drift:
    """The exact divergences of N pairs: all that a bound on the surrogate's error may ask for.

    Maxima run over every context, `seq_*` are KL and TV of whole responses, `mean_*` are E_{c~d_t} per position.
    `path` is E_p[Σ_t |ρ_t - 1| Σ_{k>t} TV(c_k)]; `martingale` is Σ_k E_p[χ²(c_k) (W_{k-1} - 1)²].
    """

    horizon: int
    kl_max: Float[Tensor, " N"]
    tv_max: Float[Tensor, " N"]
    chi2_max: Float[Tensor, " N"]
    seq_kl: Float[Tensor, " N"]
    seq_tv: Float[Tensor, " N"]
    mean_kl: Float[Tensor, "N T"]
    mean_tv: Float[Tensor, "N T"]
    mean_chi2: Float[Tensor, "N T"]
    path: Float[Tensor, " N"]
    martingale: Float[Tensor, " N"]


def log_ratios(pair: TreePair) -> Levels:
    """log ρ per context and token, [N, V^t, V] per depth."""
    return tuple(q - p for p, q in zip(pair.rollout, pair.current, strict=True))


def context_divergences(pair: TreePair) -> tuple[Levels, Levels, Levels]:
    """KL(p‖q), TV and χ² at every context, [N, V^t] per depth."""
    pairs = list(zip(pair.rollout, log_ratios(pair), strict=True))
    kl = tuple((p.exp() * expm1_minus(d)).sum(-1) for p, d in pairs)
    tv = tuple(0.5 * (p.exp() * torch.expm1(d).abs()).sum(-1) for p, d in pairs)
    chi2 = tuple((p.exp() * torch.expm1(d).square()).sum(-1) for p, d in pairs)
    return kl, tv, chi2


def path_sums(levels: Levels) -> Levels:
    """Sums of a token quantity along the path to every context, T + 1 levels: the last one holds the V^T responses."""
    sums = [levels[0].new_zeros(levels[0].shape[0], 1)]
    for level in levels:
        sums.append((sums[-1][..., None] + level).flatten(1))
    return tuple(sums)


def by_response(pair: TreePair, levels: Levels) -> Float[Tensor, "N responses T"]:
    """A context or token quantity read along every response, as a batch holding all V^T rollouts would have it."""
    responses = pair.vocabulary**pair.horizon
    rows = [level.flatten(1) for level in levels]
    return torch.stack([row.repeat_interleave(responses // row.shape[1], dim=1) for row in rows], dim=-1)


def measure(pair: TreePair) -> Drift:
    """Every exact divergence of the pair, by enumeration."""
    kl, tv, chi2 = context_divergences(pair)
    ratios = log_ratios(pair)
    mass = tuple(total.exp() for total in path_sums(pair.rollout))
    log_weight = path_sums(ratios)

    def means(values: Levels) -> Tensor:
        return torch.stack([(m * v).sum(-1) for m, v in zip(mass[:-1], values, strict=True)], dim=-1)

    spent = torch.zeros_like(mass[0])  # Σ_{s<t} |ρ_s - 1| on the way to each context
    path = torch.zeros_like(spent)
    for ratio, distance in zip(ratios, tv, strict=True):
        path = path + spent * distance
        path = path[..., None].expand_as(ratio).flatten(1)
        spent = (spent[..., None] + torch.expm1(ratio).abs()).flatten(1)

    mean_kl = means(kl)
    return Drift(
        horizon=pair.horizon,
        kl_max=_largest(kl),
        tv_max=_largest(tv),
        chi2_max=_largest(chi2),
        seq_kl=mean_kl.sum(-1),
        seq_tv=0.5 * (mass[-1] * torch.expm1(log_weight[-1]).abs()).sum(-1),
        mean_kl=mean_kl,
        mean_tv=means(tv),
        mean_chi2=means(chi2),
        path=(mass[-1] * path).sum(-1),
        martingale=means(tuple(x * torch.expm1(w).square() for x, w in zip(chi2, log_weight[:-1], strict=True))).sum(
            -1
        ),
    )


def error_weights(pair: TreePair) -> Float[Tensor, "N responses"]:
    """The signed measure whose integral over a reward is the error: J(q) - J(p) - L' = Σ_y weight(y) R(y).

    weight = p(y) (W_T - 1 - Σ_t (ρ_t - 1)), summed as p Σ_t (W_{t-1} - 1)(ρ_t - 1): every term is of second order, so a
    small drift keeps its digits.
    """
    excess = pair.rollout[0].new_zeros(pair.rollout[0].shape[0], 1)
    for log_weight, ratio in zip(path_sums(log_ratios(pair)), log_ratios(pair), strict=False):
        excess = (excess[..., None] + torch.expm1(log_weight)[..., None] * torch.expm1(ratio)).flatten(1)
    return path_sums(pair.rollout)[-1].exp() * excess


def exact_error(pair: TreePair, reward: Float[Tensor, "N responses"]) -> Float[Tensor, " N"]:
    """J(q) - J(p) - L' for one reward per response, L' = E_p[R Σ_t (ρ_t - 1)]."""
    return (error_weights(pair) * reward).sum(-1)


def worst_error(weights: Float[Tensor, "N responses"]) -> Float[Tensor, " N"]:
    """max over R in [0, 1] of |Σ_y weight(y) R(y)|: R is 1 where the weight has the heavier sign, 0 elsewhere."""
    return torch.maximum(weights.clamp(min=0).sum(-1), -weights.clamp(max=0).sum(-1))


def select(pair: TreePair, rows: Sequence[int] | Tensor | slice) -> TreePair:
    """The same pairs with only these rows."""
    return TreePair(tuple(p[rows] for p in pair.rollout), tuple(q[rows] for q in pair.current))


def _largest(levels: Levels) -> Tensor:
    return torch.cat(levels, dim=-1).amax(-1)

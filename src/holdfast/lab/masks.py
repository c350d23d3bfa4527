"""Trust region masks on enumerated trees: the exact worst-case error of each mask, and what its certificate charges.

A context is bad where KL(p‖q) exceeds the mask's δ. The token mask drops the tokens at bad contexts, the prefix mask
everything from the first bad context on, the sequence mask every response that meets one (TRM-Max, arXiv 2512.23075).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.lab.trees import Levels, TreePair, context_divergences, log_ratios, path_sums

Mask = Literal["none", "token", "prefix", "sequence"]


def bad_contexts(pair: TreePair, delta: float) -> Levels:
    """True where KL(p‖q) > delta, [N, V^t] per depth."""
    return tuple(kl > delta for kl in context_divergences(pair)[0])


def kept_gain(pair: TreePair, bad: Levels, mask: Mask) -> Float[Tensor, "N responses"]:
    """Σ_t mask_t (ρ_t - 1) of every response: what the masked surrogate multiplies its reward with."""
    gains = [torch.expm1(ratio) for ratio in log_ratios(pair)]
    dropped = _from_first(bad) if mask == "prefix" else bad
    if mask in ("token", "prefix"):
        gains = [gain * ~b[..., None] for gain, b in zip(gains, dropped, strict=True)]
    gain = path_sums(tuple(gains))[-1]
    return gain * ~_met(bad) if mask == "sequence" else gain


def masked_error_weights(pair: TreePair, bad: Levels, mask: Mask) -> Float[Tensor, "N responses"]:
    """The signed measure with J(q) - J(p) - L'_mask = Σ_y weight(y) R(y), L'_mask = E_p[R Σ_t mask_t (ρ_t - 1)]."""
    weight = torch.expm1(path_sums(log_ratios(pair))[-1])
    return path_sums(pair.rollout)[-1].exp() * (weight - kept_gain(pair, bad, mask))


def surrogate_noise(pair: TreePair, bad: Levels, mask: Mask) -> Float[Tensor, " N"]:
    """√E_p[(Σ_t mask_t (ρ_t - 1))²]: the standard deviation that one rollout's surrogate has at R = 1, or its RMS."""
    return (path_sums(pair.rollout)[-1].exp() * kept_gain(pair, bad, mask).square()).sum(-1).sqrt()


def gradient_cosine(
    pair: TreePair, bad: Levels, mask: Mask, reward: Float[Tensor, "N responses"]
) -> Float[Tensor, " N"]:
    """Cosine of E_p[(R - E_p R) Σ_t mask_t ρ_t ∇log q_t] with ∇J(q), both exact, over the logits of every context."""
    mass, current = path_sums(pair.rollout)[-1].exp(), path_sums(pair.current)[-1].exp()
    centred = reward - (mass * reward).sum(-1, keepdim=True)
    dropped = {"token": bad, "prefix": _from_first(bad)}.get(mask, tuple(torch.zeros_like(b) for b in bad))
    masked = mass * centred * ~_met(bad) if mask == "sequence" else mass * centred
    found, true = [], []
    for q, ratio, drop in zip(pair.current, log_ratios(pair), dropped, strict=True):
        score = torch.eye(pair.vocabulary, dtype=q.dtype) - q.exp()[..., None, :]
        for gradient, weight, factor in ((found, masked, ratio.exp() * ~drop[..., None]), (true, current * centred, 1)):
            by_token = weight.reshape(*q.shape, -1).sum(-1) * factor
            gradient.append((by_token[..., None] * score).sum(-2).flatten(1))
    return torch.cosine_similarity(torch.cat(found, -1), torch.cat(true, -1), dim=-1)


def trusted_pair(pair: TreePair, bad: Levels, mask: Literal["token", "prefix"]) -> TreePair:
    """The policy that the mask's surrogate is really about: the rollout policy where the mask drops, else the current.

    With it, L'_mask is an ordinary surrogate, and every bound holds at the drift that the mask let through.
    """
    dropped = bad if mask == "token" else _from_first(bad)
    current = tuple(
        torch.where(b[..., None], p, q) for p, q, b in zip(pair.rollout, pair.current, dropped, strict=True)
    )
    return TreePair(pair.rollout, current)


def hit_probability(pair: TreePair, bad: Levels) -> Float[Tensor, " N"]:
    """P_q(the response meets a bad context), what the certificate of every mask pays besides the bound."""
    return (path_sums(pair.current)[-1].exp() * _met(bad)).sum(-1)


def sampled_hit_probability(pair: TreePair, bad: Levels) -> Float[Tensor, " N"]:
    """The same from rollouts: E_p[Π_{s<τ} ρ_s 1(hit)], τ the first bad context. What a logged run can estimate."""
    weights, masses, first = path_sums(log_ratios(pair)), path_sums(pair.rollout), _from_first(bad)
    before = [torch.zeros_like(first[0]), *(_children(level, pair.vocabulary) for level in first[:-1])]
    terms = [
        ((mass + weight).exp() * (now & ~earlier)).sum(-1)
        for mass, weight, now, earlier in zip(masses, weights, first, before, strict=False)
    ]
    return torch.stack(terms).sum(0)


def sequence_extra(pair: TreePair, bad: Levels) -> Float[Tensor, " N"]:
    """E_p[(1 - M) |Σ_{t: c_t good} (ρ_t - 1)|]: what the sequence mask loses by dropping good tokens too."""
    return (path_sums(pair.rollout)[-1].exp() * _met(bad) * kept_gain(pair, bad, "token").abs()).sum(-1)


def acceptance(pair: TreePair, bad: Levels) -> Float[Tensor, " N"]:
    """P_p(the response meets no bad context): the share of rollouts that the sequence mask keeps."""
    return (path_sums(pair.rollout)[-1].exp() * ~_met(bad)).sum(-1)


def _from_first(bad: Levels) -> Levels:
    """True at every context at or below a bad one."""
    seen = [bad[0]]
    for level in bad[1:]:
        seen.append(level | _children(seen[-1], level.shape[-1] // seen[-1].shape[-1]))
    return tuple(seen)


def _met(bad: Levels) -> Tensor:
    """True for responses that meet a bad context, [N, V^T]."""
    vocabulary = bad[1].shape[-1] if len(bad) > 1 else 1
    return _children(_from_first(bad)[-1], vocabulary)


def _children(level: Tensor, vocabulary: int) -> Tensor:
    return level.repeat_interleave(vocabulary, dim=-1)

"""Covariance of log-probability and advantage: what moves the entropy of a policy, to first order.

dH = −Cov_{a~π}(log π(a), dz(a)) for a step dz of the logits (Cui et al., arXiv 2505.22617, Lemma 1 and Theorem 1, in
the form of Lei and Baehr, arXiv 2604.09676). A vanilla policy-gradient step has dz = η π A, a natural one dz = η A.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holdfast.core.ratios import masked


def token_covariance(
    logprobs: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Cov_t = (log π_t − mean log π)(A_t − mean A), means over all masked-in tokens of the batch; zero elsewhere.

    Cui et al. (arXiv 2505.22617), eq. 10. Give it the whole batch of one optimiser step: on a micro-batch the means,
    and so the selected tokens, are others.
    """
    count = mask.sum().clamp(min=1)
    centred_logprobs = logprobs - masked(logprobs, mask).sum() / count
    centred_advantages = advantages - masked(advantages, mask).sum() / count
    return masked(centred_logprobs * centred_advantages, mask)


def top_share(
    values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], share: float, ties: Float[Tensor, "B T"] | None = None
) -> Bool[Tensor, "B T"]:
    """The floor(share · K) largest values among the K masked-in tokens, without asking the device how many K is.

    Of equal values those with the largest `ties` (numbers from 0) are taken; without `ties`, whichever topk takes.
    """
    flat = torch.where(mask, values, -torch.inf).flatten()
    # floor(share K) never exceeds ceil(share · size), which is known without reading the mask back.
    most = min(flat.numel(), int(share * flat.numel()) + 1)
    if most == 0:
        return mask
    # The small surplus keeps floor() from losing a token to rounding where share · K is a whole number.
    wanted = torch.floor(mask.sum().double() * share + 1e-9).long()
    largest = flat.topk(most)
    chosen = _first(largest.indices, wanted, flat)
    if ties is not None:
        last = largest.values.gather(0, (wanted - 1).clamp(min=0)[None])
        above = flat > last
        drawn = torch.where(flat == last, ties.flatten(), -1).topk(most).indices
        chosen = above | _first(drawn, wanted - above.sum(), flat)
    return chosen.view_as(mask) & mask


def _first(order: Int[Tensor, " n"], count: Int[Tensor, ""], like: Float[Tensor, " N"]) -> Bool[Tensor, " N"]:
    """True at the first `count` places of `order`."""
    chosen = torch.zeros_like(like, dtype=torch.bool)
    return chosen.scatter(0, order, torch.arange(len(order), device=like.device) < count)


def token_uniforms(
    seed: int, sequence_ids: Int[Tensor, " B"], mask: Bool[Tensor, "B T"], step: int = 0
) -> Float[Tensor, "B T"]:
    """A uniform number in [0, 1) per token that depends only on (seed, step, sequence, position in the response).

    A counter-based draw (a 64-bit mix of the four numbers), so that neither padding, nor order, nor the split into
    micro-batches or ranks changes which tokens are drawn.
    """
    position = mask.long().cumsum(dim=-1)
    state = _mix(sequence_ids.long()[:, None] + _wrap(_GOLDEN * (seed * 1_000_003 + step + 1)))
    state = _mix(state + position * _wrap(_GOLDEN))
    return (state >> 11 & (1 << 53) - 1).double() / 2.0**53


_GOLDEN = 0x9E3779B97F4A7C15


def _wrap(value: int) -> int:
    """An unbounded integer as the signed 64-bit one with the same low bits."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _mix(state: Tensor) -> Tensor:
    """splitmix64's finaliser (Steele, Lea and Flood 2014) in wrapping signed arithmetic."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ _shift_right(state, shift)) * _wrap(factor)
    return state ^ _shift_right(state, 31)


def _shift_right(state: Tensor, bits: int) -> Tensor:
    return state >> bits & (1 << 64 - bits) - 1

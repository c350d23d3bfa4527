"""What a person needs to see of every step. Every value is a share of the optimiser step, so micro-batches add up.

Names ending in `_max` are maxima; `ess`, `effective_tokens` are derived after adding; the rest add up over the
micro-batches and ranks of one step. `merge_metrics` does all three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.linalg import vector_norm as norm

from holdfast.core.divergences import expm1_minus
from holdfast.core.entropy import token_covariance
from holdfast.objectives.parts.terms import Terms
from holdfast.objectives.policy_term import Gated
from holdfast.types import Counts


@dataclass(frozen=True)
class LengthQuartiles:
    """Quartile edges of the response lengths of a whole optimiser step, and how many sequences each quartile has."""

    edges: Float[Tensor, "3"]
    sizes: Float[Tensor, "4"]

    @staticmethod
    def of(mask: Bool[Tensor, "B T"]) -> LengthQuartiles:
        """Quartiles over non-empty sequences; a quartile holds the lengths up to and including its upper edge."""
        lengths = mask.sum(dim=-1).float()
        if lengths.numel() == 0:
            return LengthQuartiles(edges=torch.zeros(3, device=mask.device), sizes=torch.zeros(4, device=mask.device))
        ordered = torch.where(lengths > 0, lengths, torch.inf).sort().values
        # Made on the device: copying three numbers to it would make the CPU wait.
        quarters = torch.arange(1, 4, device=mask.device) / 4
        ranks = (quarters * (lengths > 0).sum()).ceil().long().clamp(min=1) - 1
        edges = ordered[ranks].nan_to_num(posinf=0.0)
        return LengthQuartiles(edges=edges, sizes=_tally(lengths, edges, lengths > 0))

    def shares(self, mask: Bool[Tensor, "B T"], chosen: Bool[Tensor, " B"]) -> Float[Tensor, "4"]:
        """For each quartile, chosen sequences of this batch over all sequences of the step."""
        lengths = mask.sum(dim=-1).float()
        return _tally(lengths, self.edges, chosen & (lengths > 0)) / self.sizes.clamp(min=1)


def _tally(lengths: Tensor, edges: Tensor, chosen: Tensor) -> Tensor:
    quartile = (lengths[:, None] > edges[None, :]).sum(dim=-1)
    return torch.stack([((quartile == q) & chosen).sum() for q in range(4)]).float()


def covariance_share(terms: Terms, top: float = 2e-4) -> Float[Tensor, ""]:
    """The share of Σ|Cov_t| that the ⌈top · K⌉ tokens of largest |Cov_t| carry; 0 where there is no covariance.

    A few tokens drive the entropy (Cui et al., arXiv 2505.22617, section 4.1, look at the top .02 %).
    """
    size = token_covariance(terms.logprobs, terms.advantages, terms.mask).abs().flatten()
    if not size.numel():
        return size.sum()
    largest = size.topk(min(size.numel(), int(top * size.numel()) + 1)).values
    wanted = torch.arange(len(largest), device=size.device) < torch.ceil(terms.mask.sum() * top)
    return torch.where(wanted, largest, 0).sum() / size.sum().clamp(min=1e-30)


def loss_metrics(
    terms: Terms,
    counts: Counts,
    quartiles: LengthQuartiles,
    keep: Bool[Tensor, "B T"],
    ratios: Gated,
    weight: Float[Tensor, "..."],
    covariance: Float[Tensor, ""],
) -> dict[str, Tensor]:
    """This batch's share of every metric.

    masked_tokens, masked_sequences (no token kept), masked_sequences_q1..q4 (by length quartile), clip_share (of all
    response tokens), coefficient_* (factor on A ∇log π relative to REINFORCE), weight_* (importance weights),
    {old,rollout}_{k1,k2,k3,abs_log}_{mean,max}, covariance_share (see `covariance_share`), entropy, and the measured
    divergences kl_exact_mean, kl_exact_max.
    """
    tokens, sequences = counts.tokens.clamp(min=1), counts.sequences.clamp(min=1)
    present = terms.mask.any(dim=-1)
    rejected = present & ~keep.any(dim=-1)
    metrics = {
        "masked_tokens": (terms.mask.sum() - keep.sum()) / tokens,
        "masked_sequences": rejected.sum() / sequences,
        "clip_share": (ratios.clipped & terms.mask).sum() / tokens,
        # One number for the whole step, shared out by tokens so that it adds up like the rest.
        "covariance_share": covariance * terms.mask.sum() / tokens,
    }
    metrics |= _moments(torch.where(keep, weight * ratios.coefficient, 0), tokens, "coefficient")
    if weight.ndim == 0:
        share = terms.mask.sum() / tokens
        metrics |= {"weight_mean": share * weight, "weight_square_mean": share * weight.square(), "weight_max": weight}
    else:
        metrics |= _moments(torch.where(terms.mask, weight, 0), tokens, "weight")
    for quartile, share in enumerate(quartiles.shares(terms.mask, rejected).unbind()):
        metrics[f"masked_sequences_q{quartile + 1}"] = share
    for policy in ("old", "rollout"):
        if getattr(terms.batch, f"{policy}_logprobs") is not None:
            metrics |= _drift(terms.log_ratio(policy), tokens, policy)
    if (entropy := terms.entropy) is not None:
        metrics["entropy"] = entropy.sum() / tokens
    if terms.stats.kl_rollout is not None:
        exact = terms.divergence("kl_exact", "rollout")
        metrics |= {"kl_exact_mean": exact.sum() / tokens, "kl_exact_max": _max(exact)}
    return _derive(metrics)


def _moments(values: Tensor, tokens: Tensor, name: str) -> dict[str, Tensor]:
    return {
        f"{name}_mean": values.sum() / tokens,
        f"{name}_square_mean": norm(values).square() / tokens,
        f"{name}_max": norm(values, torch.inf) if values.numel() else values.new_zeros(()),
    }


def _drift(log_ratio: Tensor, tokens: Tensor, policy: str) -> dict[str, Tensor]:
    """Sampled divergences from one policy; masked-out tokens have log-ratio 0 and add nothing."""
    if not log_ratio.numel():
        log_ratio = log_ratio.new_zeros(1)
    lowest, highest = log_ratio.aminmax()
    largest = torch.maximum(-lowest, highest)
    # k3 is convex with its minimum at 0, so its maximum is at one of the ends.
    ends = torch.stack([lowest, highest])
    return {
        f"{policy}_k1_mean": -log_ratio.sum() / tokens,
        f"{policy}_k1_max": -lowest,
        f"{policy}_k2_mean": norm(log_ratio).square() / 2 / tokens,
        f"{policy}_k2_max": largest.square() / 2,
        # In float64: e^x − 1 − x of float32 is 1 % off at 1e-5, and the series that is not costs a dozen passes.
        f"{policy}_k3_mean": log_ratio.double().expm1_().sub_(log_ratio).sum().to(log_ratio.dtype) / tokens,
        f"{policy}_k3_max": expm1_minus(ends).max(),
        f"{policy}_abs_log_mean": norm(log_ratio, 1) / tokens,
        f"{policy}_abs_log_max": largest,
    }


def _max(values: Tensor) -> Tensor:
    return values.max() if values.numel() else values.new_zeros(())


def _derive(metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """ess = (Σw)²/(K Σw²), effective_tokens = (Σc)²/(K Σc²), both in [0, 1]; 0 where nothing has weight."""
    for name, base in (("ess", "weight"), ("effective_tokens", "coefficient")):
        square = metrics[f"{base}_square_mean"]
        metrics[name] = torch.where(square > 0, metrics[f"{base}_mean"].square() / square.clamp(min=1e-30), 0)
    return metrics


def merge_metrics(shares: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The metrics of one optimiser step from those of its micro-batches (all made with the same Plan)."""
    if not shares:
        return {}
    names = shares[0].keys()
    merged = {}
    for name in names:
        values = torch.stack([share[name] for share in shares])
        merged[name] = values.amax() if name.endswith("_max") else values.sum()
    return _derive(merged)

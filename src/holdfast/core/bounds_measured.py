"""Per-rollout quantities whose means bound the surrogate error: nothing here assumes a maximum over all contexts.

Each function gives one number per sequence, [B]; its expectation over rollouts is the bound or an ingredient of it, so
the same functions serve exact enumeration (weights p), a batch (plain means) and the certificate (confidence limits).
Notation as in `bound_formulas`; proofs in docs/theory/bounds.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.core.bounds import Bound, ByPosition, table
from holdfast.core.divergences import expm1_minus
from holdfast.core.ratios import masked
from holdfast.errors import DataError
from holdfast.types import Batch, TokenStats

_ROUNDING = 1e-5  # how far below zero rounding may leave a divergence measured in float32
Tokens = Float[Tensor, "B T"]
Sequences = Float[Tensor, " B"]


@dataclass(frozen=True)
class SampledDrift:
    """What was measured at the contexts of B rollouts: float64 on the CPU, zero outside the response.

    `kl` and `chi2` are exact; `tv` is exact or an upper bound, from the engine's top-K, √(KL/2) or ½ √χ², whichever is
    smallest. None where nothing was measured.
    """

    log_ratio: Tokens
    mask: Bool[Tensor, "B T"]
    kl: Tokens | None = None
    tv: Tokens | None = None
    chi2: Tokens | None = None

    @property
    def surrogate(self) -> Tokens:
        """ρ_t - 1: what each token adds to the surrogate."""
        return torch.expm1(self.log_ratio)

    @property
    def k3(self) -> Tokens:
        """ρ_t - 1 - log ρ_t ≥ 0."""
        return expm1_minus(self.log_ratio)


def sampled_drift(batch: Batch, stats: TokenStats) -> SampledDrift:
    """Take from a batch what may feed a guarantee: sampled log-ratios, exact KL and χ², exact or upper TV.

    Sampled estimates (k1, k2, k3) and lower bounds are never taken. Raises DataError without rollout log-probabilities,
    and for values that no divergence can have.
    """
    if batch.rollout_logprobs is None:
        raise DataError("rollout_logprobs is None: the drift is measured against the engine's own log-probabilities")
    mask = batch.response_mask.detach().cpu()
    log_ratio = _tokens(stats.logprobs, mask) - _tokens(batch.rollout_logprobs, mask)
    if not bool(log_ratio.isfinite().all()):
        raise DataError(
            "log-ratios are not finite at response tokens: log-probabilities must be finite there (an engine that "
            "truncates its support must report them on the kept set, renormalised, and so must the trainer)"
        )
    tv = stats.tv_rollout if stats.tv_rollout is not None else stats.tv_rollout_upper
    kl = _divergence("kl_rollout", stats.kl_rollout, mask)
    chi2 = _divergence("chi2_rollout", stats.chi2_rollout, mask)
    upper = (_divergence("tv_rollout", tv, mask, 1.0), _root(kl, 2.0), _root(chi2, 4.0))
    known = [value for value in upper if value is not None]
    tightest = torch.stack(known).amin(0).clamp(max=1) if known else None
    return SampledDrift(log_ratio, mask, kl, tightest, chi2)


def path(measured: SampledDrift) -> Sequences:
    """Σ_t |ρ_t - 1| Σ_{k>t} TV(c_k) Π_{t<s<k} min(1, ρ_s): its mean is the path bound. [8]

    The product is the chance that a coupling of both policies still agrees when it reaches c_k; without it (all ones)
    the bound of the theory sheet remains, which grows with T² where this one grows with T. Its mean over a sample says
    nothing of tokens that the sample lacks, |ρ - 1| being read at sampled tokens only: it certifies nothing.
    """
    tv = _needed(measured.tv, "a TV (tv_rollout, tv_rollout_upper, kl_rollout or chi2_rollout)")
    kept = measured.log_ratio.clamp(max=0).exp()
    step = measured.surrogate.abs()
    parting, total = torch.zeros_like(tv[:, 0]), torch.zeros_like(tv[:, 0])
    for t in range(tv.shape[1] - 1, -1, -1):
        total = total + step[:, t] * parting
        parting = tv[:, t] + kept[:, t] * parting
    return total


def error_terms(measured: SampledDrift) -> Sequences:
    """W - 1 - Σ_t(ρ_t - 1), W = Π ρ_t: Error = E_p[(R - b) · this] for any b that does not see the sample. [0]"""
    return expm1_minus(measured.log_ratio.sum(-1)) - measured.k3.sum(-1)


def compensation(measured: SampledDrift) -> tuple[Sequences, Sequences]:
    """((Σ KL(c_t) - k3(W))⁺, Σ(k3_t - KL(c_t))): shortfall and noise, k3(W) = W - 1 - log W of the whole sequence. [15]

    error_terms = k3(W) - Σ KL(c_t) - noise, where the noise is a martingale. So |Error| ≤ E shortfall + ½ E|noise|, and
    Error ≥ -E[R · shortfall + (R - b) · noise] for the reward itself. Both are light: shortfall ≤ Σ KL(c_t) pathwise,
    so this is never above `sequence_kl` but for the noise, which vanishes as the ratios approach 1.
    """
    kl = _needed(measured.kl, "kl_rollout").sum(-1)
    shortfall = (kl - expm1_minus(measured.log_ratio.sum(-1))).clamp(min=0)
    return shortfall, measured.k3.sum(-1) - kl


@dataclass(frozen=True)
class MaskedTerms:
    """One number per sequence for the masked certificates; τ is the first bad context, if any. [13]"""

    hit: Sequences
    """1 where the sequence reaches a bad context."""
    weight_at_hit: Sequences
    """Π_{s<τ} ρ_s where it does, else 0: its mean is the current policy's probability of reaching one."""
    kl_before: Sequences
    """Σ_{t<τ} KL(c_t): its mean bounds the error of the policy that stops changing at τ."""
    kl_outside: Sequences
    """Σ KL(c_t) over the contexts that are not bad: the same for a token mask."""
    surrogate_before: Sequences
    """Σ_{t<τ}(ρ_t - 1): R times this is the surrogate of the prefix mask."""
    surrogate_outside: Sequences
    """Σ(ρ_t - 1) over the contexts that are not bad: the surrogate of the token mask."""

    @property
    def surrogate_kept(self) -> Sequences:
        """Σ(ρ_t - 1) where no context is bad, else 0: the surrogate of the sequence mask."""
        return self.surrogate_before * (1 - self.hit)

    @property
    def lost_to_sequence_mask(self) -> Sequences:
        """What the sequence mask drops beyond the prefix mask: (1 - M) |Σ_{t<τ}(ρ_t - 1)|."""
        return self.surrogate_before.abs() * self.hit


def bad_contexts(measured: SampledDrift, threshold: float) -> Bool[Tensor, "B T"]:
    """Response tokens whose context has KL(c) > `threshold` (nats): known before the token is drawn."""
    return (_needed(measured.kl, "kl_rollout") > threshold) & measured.mask


def before_first(bad: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """True at t < τ, τ the first bad position of each sequence."""
    return bad.int().cumsum(-1) == 0


def masked_terms(measured: SampledDrift, threshold: float) -> MaskedTerms:
    """Split every rollout at its first context with KL(c) > `threshold` (nats).

    |J(θ) - J(p) - L| ≤ P_θ(hit) + B, with B = E_p kl_before for the prefix mask's L, E_p kl_outside for the token
    mask's, and E_p[kl_before + lost_to_sequence_mask] for the sequence mask's. No drift is assumed inside bad contexts.
    """
    kl = _needed(measured.kl, "kl_rollout")
    bad = bad_contexts(measured, threshold)
    before = before_first(bad)
    hit = bad.any(-1).to(kl.dtype)
    weight = masked(measured.log_ratio, before).sum(-1).exp()
    step = measured.surrogate
    return MaskedTerms(
        hit=hit,
        weight_at_hit=weight * hit,
        kl_before=masked(kl, before).sum(-1),
        kl_outside=masked(kl, ~bad).sum(-1),
        surrogate_before=masked(step, before).sum(-1),
        surrogate_outside=masked(step, ~bad).sum(-1),
    )


def hit_probability(rollout_hit: Tokens | Sequences | Float[Tensor, ""], kl_before: Tensor) -> Tensor:
    """The largest q with kl(h‖q) = h log(h/q) + (1-h) log((1-h)/(1-q)) ≤ S: P_θ(hit) without importance weights. [14]

    h = P_p(hit), S = E_p kl_before. Data processing: an event's KL is at most that of the whole prefix. Increasing in
    both, so upper confidence limits may be put in. At h = 0 it is 1 - e^(-S).
    """
    h, budget = torch.broadcast_tensors(rollout_hit.double(), kl_before.double())
    low, high = h.clone(), torch.ones_like(h)
    for _ in range(60):
        middle = (low + high) / 2
        rest = 1 - h
        cost = torch.special.xlogy(h, h / middle) + torch.special.xlogy(rest, rest / (1 - middle))
        inside = cost <= budget
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return high


def observed(batch: Batch, stats: TokenStats, horizon: int | None = None) -> dict[str, Bound]:
    """`bounds.table` of one batch: means by position, and the maxima over the contexts that were sampled.

    A running commentary, not a guarantee: means are taken as they are, and a maximum over sampled contexts is not one
    over all contexts (each bound's assumptions still say what would have to be true). `certificate.certify` gives
    guarantees. `horizon` is the maximum response length, by default the batch's width.
    """
    measured = sampled_drift(batch, stats)
    width = measured.mask.shape[1]
    horizon = width if horizon is None else horizon
    if horizon < width:
        raise DataError(f"horizon is {horizon}, but the batch has {width} positions: give the longest response allowed")
    means = {
        key: torch.nn.functional.pad(value.mean(0), (0, horizon - width))
        for key in ("tv", "kl", "chi2")
        if (value := getattr(measured, key)) is not None
    }
    maxima = {key: getattr(measured, key).max() for key in means}
    rows = table(horizon, **maxima, by_position=ByPosition(**means))
    pathwise: dict[str, tuple[Tensor, str]] = {}
    if measured.tv is not None:
        pathwise["path"] = (path(measured), "mean over rollouts of Σ_t |ρ_t - 1| Σ_{k>t} TV(c_k) Π min(1, ρ_s)")
    if measured.kl is not None:
        shortfall, noise = compensation(measured)
        assumption = "mean over rollouts of (Σ KL(c_t) - k3(W))⁺ + ½ |Σ(k3_t - KL(c_t))|"
        pathwise["compensated"] = (shortfall + noise.abs() / 2, assumption)
    for name, (values, assumption) in pathwise.items():
        value = values.mean()
        rows[name] = Bound(name, value, value, {name: value}, (assumption,))
    return rows


def _tokens(values: Tensor, mask: Tensor) -> Tensor:
    return masked(values.detach().cpu().double(), mask)


def _divergence(name: str, values: Tensor | None, mask: Tensor, largest: float = torch.inf) -> Tensor | None:
    if values is None:
        return None
    tokens = _tokens(values, mask)
    if not bool(((tokens >= -_ROUNDING) & (tokens <= largest + _ROUNDING) & tokens.isfinite()).all()):
        low, high = tokens.min().item(), tokens.max().item()
        raise DataError(
            f"{name} ranges from {low:g} to {high:g}, allowed are finite numbers from 0 to {largest:g}: check that "
            "both policies are normalised on the same support"
        )
    return tokens.clamp(0, largest)


def _root(values: Tensor | None, divisor: float) -> Tensor | None:
    return None if values is None else (values / divisor).sqrt()


def _needed(values: Tensor | None, name: str) -> Tensor:
    if values is None:
        raise DataError(
            f"{name} was not measured: this bound needs it at every sampled context, exact or an upper bound"
        )
    return values

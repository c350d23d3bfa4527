"""How far the policy being trained is from the policy that sampled, token by token, and what each number is worth.

Every function returns a `Divergence`: the value together with its `Kind`. An estimate or a lower bound never proves
that a drift is small; only `upper` and `exact` values may feed a guarantee, and `Divergence` refuses the rest.

Notation: p is the rollout policy (sampled the token), q the current policy, ρ = q/p, all at one context. Divergences
are KL(p‖q) in nats, TV(p, q) = ½ Σ|p - q| in [0, 1] and χ²(c) = E_p[(ρ - 1)²]. `log_ratio` is log ρ at the sampled
token. Nothing here checks values: these functions run inside training and never synchronise the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.errors import ConfigError, DataError

_SERIES_RADIUS = 0.25


class Kind(StrEnum):
    """What a measured divergence says about the true one."""

    ESTIMATE = "estimate"
    LOWER = "lower"
    UPPER = "upper"
    EXACT = "exact"


@dataclass(frozen=True)
class Divergence:
    """A divergence per token (or reduced), its name, and what it says about the true value.

    >>> k2(torch.tensor([0.1])).kind
    <Kind.ESTIMATE: 'estimate'>
    """

    value: Float[Tensor, "*shape"]
    name: str
    kind: Kind

    def as_upper(self) -> Float[Tensor, "*shape"]:
        """The value where a guarantee needs an upper bound; DataError for an estimate or a lower bound."""
        return self._require(Kind.UPPER)

    def as_lower(self) -> Float[Tensor, "*shape"]:
        """The value where a violation must be proven; DataError for an estimate or an upper bound."""
        return self._require(Kind.LOWER)

    def reduce(self, monotone: Callable[[Tensor], Tensor]) -> Divergence:
        """The same divergence after a non-decreasing map (mean, sum or maximum over tokens), which keeps its kind."""
        return Divergence(monotone(self.value), self.name, self.kind)

    def __add__(self, other: Divergence) -> Divergence:
        """Sum of two divergences: exact joins any kind, any other two kinds must be the same (DataError)."""
        kind = self.kind if other.kind is Kind.EXACT else other.kind
        if self.kind is not Kind.EXACT and kind is not self.kind:
            raise DataError(
                f"cannot add {self.name} ({self.kind.value}) and {other.name} ({other.kind.value}): the sum would "
                "be neither a bound nor an estimate; allowed are two of one kind, or exact with any kind. "
                "Measure both the same way"
            )
        return Divergence(self.value + other.value, self.name if self.name == other.name else "sum", kind)

    def _require(self, kind: Kind) -> Tensor:
        if self.kind not in (kind, Kind.EXACT):
            raise DataError(
                f"{self.name} is of kind {self.kind.value}, but this needs {kind.value} or exact: pass an exact "
                "divergence (full logits, or hidden states with a head), or TV bounds from the engine's top-K"
            )
        return self.value


def expm1_minus(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """e^x - 1 - x without cancellation: never negative, relative error a few units of rounding for every x.

    Differs from `expm1(x) - x`, which in float32 is 1 % off at x = 1e-5 and may be negative below: for |x| < 1/4 the
    series x²/2 (1 + x/3 (1 + x/4 (…))) is summed instead.
    """
    terms = 14 if x.dtype == torch.float64 else 8  # 2 · .25^k / (k + 2)! below half a unit of rounding
    one = torch.ones((), dtype=x.dtype, device=x.device)
    series = one
    for n in range(terms, 2, -1):
        series = torch.addcmul(one, series, x, value=1 / n)
    return torch.where(x.abs() < _SERIES_RADIUS, 0.5 * x * x * series, torch.expm1(x) - x)


def k1(log_ratio: Float[Tensor, "*shape"]) -> Divergence:
    """k1 = -log ρ: unbiased for KL(p‖q), signed, noisy. (Schulman 2020, "Approximating KL divergence")."""
    return Divergence(-log_ratio, "k1", Kind.ESTIMATE)


def k2(log_ratio: Float[Tensor, "*shape"]) -> Divergence:
    """k2 = ½ (log ρ)²: a symmetric detector of single tokens, biased for KL (TRM, arXiv 2512.23075: for the maximum).

    Blind where it matters least often but most: |log ρ| ≤ √(2δ) on every sampled token leaves room for a KL of √(2δ).
    """
    return Divergence(0.5 * log_ratio * log_ratio, "k2", Kind.ESTIMATE)


def k3(log_ratio: Float[Tensor, "*shape"]) -> Divergence:
    """k3 = ρ - 1 - log ρ ≥ 0: unbiased for KL(p‖q) (TRM, arXiv 2512.23075: for the mean)."""
    return Divergence(expm1_minus(log_ratio), "k3", Kind.ESTIMATE)


def abs_log(log_ratio: Float[Tensor, "*shape"]) -> Divergence:
    """|log ρ|: a symmetric detector (first version of TRM)."""
    return Divergence(log_ratio.abs(), "abs_log", Kind.ESTIMATE)


def binary_tv(
    logprobs: Float[Tensor, "*shape"],
    rollout_logprobs: Float[Tensor, "*shape"],
) -> Divergence:
    """|q(y) - p(y)|: TV after merging all tokens but the sampled one, so a lower bound of TV.

    Computed as p(y) |expm1(log ρ)|, which keeps its digits where p and q nearly agree.
    """
    value = rollout_logprobs.exp() * torch.expm1(logprobs - rollout_logprobs).abs()
    return Divergence(value, "binary_tv", Kind.LOWER)


def binary_kl(
    logprobs: Float[Tensor, "*shape"],
    rollout_logprobs: Float[Tensor, "*shape"],
) -> Divergence:
    """p log(p/q) + (1-p) log((1-p)/(1-q)) at the sampled token: KL after merging all other tokens, a lower bound.

    Computed as Σ_i p_i (e^{d_i} - 1 - d_i) over the two outcomes, d = log q_i/p_i: the same sum, since Σ p_i e^{d_i} =
    Σ p_i, without cancellation. Probabilities are capped one unit of rounding below 1, where float logprobs no longer
    tell 1 - p; the cap moves p and q towards each other, so the bound stays a lower one.
    """
    cap = -torch.finfo(logprobs.dtype).eps
    current, rollout = logprobs.clamp(max=cap), rollout_logprobs.clamp(max=cap)
    rest = _log1mexp(current) - _log1mexp(rollout)
    value = rollout.exp() * expm1_minus(current - rollout) - torch.expm1(rollout) * expm1_minus(rest)
    return Divergence(value, "binary_kl", Kind.LOWER)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, accurate at both ends."""
    near = x > -0.6931  # each branch sees only its own side, so that no gradient is 0 · inf
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -0.6931))),
        torch.log1p(-torch.exp(torch.where(near, -0.6931, x))),
    )


@dataclass(frozen=True)
class TopKDivergences:
    """What K log-probabilities per policy prove: a lower bound of KL and a two-sided interval of TV."""

    kl_lower: Divergence
    tv_lower: Divergence
    tv_upper: Divergence


def top_k(logprobs: Float[Tensor, "*shape K"], rollout_logprobs: Float[Tensor, "*shape K"]) -> TopKDivergences:
    """Bounds from the log-probabilities of both policies at the same K distinct tokens; all others form one tail.

    KL ≥ Σ_K p log(p/q) + p_tail log(p_tail/q_tail),  ½(Σ_K|p - q| + |p_tail - q_tail|) ≤ TV ≤ ½(Σ_K|p - q| + p_tail
    + q_tail). The K tokens are usually the engine's top-K, but any K distinct ones are valid; -inf marks a token that a
    policy cannot sample, on both sides it marks padding. Tails below K units of rounding are taken as that much: this
    shrinks the lower bound of KL and raises the upper bound of TV, never the reverse. The upper bound of TV needs no
    assumption about the tail, and shrinks to TV as the tail vanishes.
    """
    current, rollout = logprobs.exp(), rollout_logprobs.exp()
    rounding = torch.finfo(logprobs.dtype).eps * logprobs.shape[-1]
    current_tail = (1 - current.sum(-1)).clamp(min=rounding)
    rollout_tail = (1 - rollout.sum(-1)).clamp(min=rounding)
    kl = _kl_terms(rollout, current, logprobs - rollout_logprobs).sum(-1)
    kl = kl + _kl_terms(rollout_tail, current_tail, current_tail.log() - rollout_tail.log())
    gap = (current - rollout).abs().sum(-1)
    tail_gap = (current - rollout).sum(-1).abs()
    tv_upper = (0.5 * (gap + current_tail + rollout_tail)).clamp(max=1)
    # A report in low precision may sum to more than 1, and the bounds would cross; lowering a lower one is safe.
    tv_lower = (0.5 * (gap + tail_gap)).minimum(tv_upper)
    return TopKDivergences(
        kl_lower=Divergence(kl, "top_k_kl", Kind.LOWER),
        tv_lower=Divergence(tv_lower, "top_k_tv", Kind.LOWER),
        tv_upper=Divergence(tv_upper, "top_k_tv", Kind.UPPER),
    )


def _kl_terms(p: Tensor, q: Tensor, log_ratio: Tensor) -> Tensor:
    """p log(p/q) - p + q per outcome: never negative, and summing over all outcomes to KL(p‖q)."""
    return torch.where(p > 0, p * expm1_minus(log_ratio), q)


@dataclass(frozen=True)
class Support:
    """How the engine shaped the distribution it sampled from; the defaults change nothing.

    Applied in vLLM's order: temperature, min_p, top_k (0: off), top_p on what is left. Ties are kept.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature is {self.temperature}, allowed is above 0: greedy decoding samples from no distribution, "
                "so it has no divergence; sample at a positive temperature"
            )
        if self.top_k < 0:
            raise ConfigError(f"top_k is {self.top_k}, allowed is 0 (off) or a positive number of tokens")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}, allowed is above 0 up to 1 (off)")
        if not 0 <= self.min_p < 1:
            raise ConfigError(f"min_p is {self.min_p}, allowed is 0 (off) to below 1")

    def kept(self, rollout_logits: Float[Tensor, "*shape V"]) -> Bool[Tensor, "*shape V"]:
        """The tokens that the engine could sample; logits of -inf are never kept."""
        logits = rollout_logits / self.temperature
        kept = logits > -torch.inf
        if self.min_p > 0:
            kept = kept & (logits >= logits.amax(-1, keepdim=True) + math.log(self.min_p))
        if 0 < self.top_k < logits.shape[-1]:
            kept = kept & (logits >= logits.topk(self.top_k, dim=-1).values[..., -1:])
        if self.top_p < 1:
            ordered = logits.masked_fill(~kept, -torch.inf).sort(dim=-1, descending=True).values
            probabilities = ordered.softmax(-1)
            before = probabilities.cumsum(-1) - probabilities
            last = (before < self.top_p).sum(-1, keepdim=True).clamp(min=1) - 1
            kept = kept & (logits >= ordered.gather(-1, last))
        return kept


@dataclass(frozen=True)
class ExactDivergences:
    """Divergences over the whole vocabulary, both policies renormalised on the tokens the engine kept.

    `kept_mass` is the mass that the current policy puts on those tokens: 1 without truncation. Against the current
    policy as it is (not renormalised) KL is larger by -log kept_mass, and E ρ is kept_mass instead of 1.
    """

    kl: Divergence
    tv: Divergence
    chi2: Divergence
    kept_mass: Float[Tensor, "*shape"]


@torch.no_grad()
def exact_from_logits(
    logits: Float[Tensor, "*shape V"],
    rollout_logits: Float[Tensor, "*shape V"],
    *,
    support: Support = Support(),
    chunk_elements: int = 2**23,
) -> ExactDivergences:
    """Exact KL(p‖q), TV and χ² per row from the raw logits of both policies, without a gradient.

    With u = z_p - z_q - c, c = E_p[z_p - z_q], A = E_p[u] and B = E_p[e^{-u} - 1 + u]: KL = A + log1p(B - A), and
    log ρ = -(u + log1p(B - A)). Both vanish with u, so nothing cancels: a KL of 1e-9 keeps three digits in float32,
    where the difference of two log-softmaxes is noise below 1e-6. Rows are worked off in chunks of about
    `chunk_elements` logits, at least in float32. Rollout logits of -inf mark tokens that the engine dropped, which is
    how to hand in its own kept set. DataError where the vocabularies differ.
    """
    _check_vocabulary(logits.shape[-1], rollout_logits.shape[-1])
    shape, vocabulary = logits.shape[:-1], logits.shape[-1]
    rows = max(1, chunk_elements // vocabulary)
    current = logits.reshape(-1, vocabulary).split(rows)
    rollout = rollout_logits.reshape(-1, vocabulary).split(rows)
    return _collect([_exact_rows(q, p, support) for q, p in zip(current, rollout, strict=True)], shape)


@torch.no_grad()
def exact_from_hidden(
    hidden: Float[Tensor, "*shape H"],
    head: Float[Tensor, "V H"],
    rollout_hidden: Float[Tensor, "*shape H_rollout"],
    rollout_head: Float[Tensor, "V_rollout H_rollout"],
    *,
    support: Support = Support(),
    chunk_elements: int = 2**23,
) -> ExactDivergences:
    """`exact_from_logits` of z = hidden · headᵀ for both policies, never holding more than a chunk of rows of logits.

    The matrix product runs in float32 or better whatever the dtype of the states: logits rounded to bfloat16 alone
    cost a KL of 1e-4 to 1e-3 nat per token. Storing the final hidden state per token and one head per policy version
    is the cheapest record from which KL is still exact. DataError where the vocabularies differ.
    """
    _check_vocabulary(head.shape[0], rollout_head.shape[0])
    rows = max(1, chunk_elements // head.shape[0])
    current = hidden.reshape(-1, hidden.shape[-1]).split(rows)
    rollout = rollout_hidden.reshape(-1, rollout_hidden.shape[-1]).split(rows)
    head, rollout_head = _widen(head), _widen(rollout_head)
    chunks = zip(current, rollout, strict=True)
    return _collect(
        [_exact_rows(_widen(q) @ head.T, _widen(p) @ rollout_head.T, support) for q, p in chunks], hidden.shape[:-1]
    )


def _exact_rows(
    current: Float[Tensor, "N V"], rollout: Float[Tensor, "N V"], support: Support
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """KL, TV, χ² and the kept mass of N rows of logits."""
    current, rollout = _widen(current) / support.temperature, _widen(rollout) / support.temperature
    outside = ~replace(support, temperature=1.0).kept(rollout)
    log_p = rollout.masked_fill(outside, -torch.inf).log_softmax(-1)
    inside = current.masked_fill(outside, -torch.inf)
    log_q = inside.log_softmax(-1)
    kept_mass = (inside.logsumexp(-1) - current.logsumexp(-1)).exp()
    p, q = log_p.exp(), log_q.exp()
    direct_kl = (p * (log_p - log_q)).masked_fill(p == 0, 0).sum(-1)

    gap = (rollout - current.clamp(min=torch.finfo(current.dtype).min / 4)).masked_fill(outside, 0)
    u = gap - (p * gap).sum(-1, keepdim=True)
    a = (p * u).sum(-1)
    # p e^{-u} is taken in log space: a token that the rollout policy all but excludes may have a huge e^{-u}
    b = torch.where(u.abs() < _SERIES_RADIUS, p * expm1_minus(-u), (log_p - u).exp() - p + p * u).sum(-1)
    offset = torch.log1p(b - a)
    # far apart nothing cancels, and the centred sums may overflow
    near = direct_kl < 1
    kl = torch.where(near, (b - expm1_minus(offset)).clamp(min=0), direct_kl)
    log_ratio = torch.where(near[:, None], -(u + offset[:, None]), log_q - log_p).masked_fill(outside, 0)
    deviation = torch.expm1(log_ratio)
    gap = torch.where(log_ratio.abs() < 1, p * deviation, q - p)
    chi2 = torch.where(log_ratio < 1, gap * deviation, (2 * log_q - log_p).exp() - 2 * q + p).sum(-1)
    return kl, 0.5 * gap.abs().sum(-1), chi2, kept_mass


def _collect(parts: list[tuple[Tensor, ...]], shape: torch.Size) -> ExactDivergences:
    kl, tv, chi2, kept_mass = (torch.cat(column).reshape(shape) for column in zip(*parts, strict=True))
    return ExactDivergences(
        kl=Divergence(kl, "kl", Kind.EXACT),
        tv=Divergence(tv, "tv", Kind.EXACT),
        chi2=Divergence(chi2, "chi2", Kind.EXACT),
        kept_mass=kept_mass,
    )


def _widen(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


def _check_vocabulary(current: int, rollout: int) -> None:
    if current != rollout:
        raise DataError(
            f"the current policy has a vocabulary of {current} and the rollout policy one of {rollout}: both must be "
            "the same tokens in the same order; cut the padded rows off the larger head"
        )

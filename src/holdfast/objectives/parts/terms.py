"""What the parts of an objective see of a batch: masked, clamped, float32 or wider, each ratio computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.core import divergences
from holdfast.core.entropy import token_uniforms
from holdfast.core.ratios import log_ratio, masked
from holdfast.errors import DataError
from holdfast.types import Batch, TokenStats

Policy = Literal["old", "rollout", "ref", "teacher"]

Numerator = Literal["current", "old"]
"""The policy above a ratio: the one that is trained, or the one before the step, whose ratio to the engine is drift."""

Detector = Literal[
    "k1", "k2", "k3", "abs_log", "binary_tv", "binary_kl",
    "kl_exact", "tv_exact", "chi2_exact", "kl_lower", "tv_lower", "tv_upper",
]  # fmt: skip
"""Divergence of the current policy from another one, per token: sampled, binary, exact, or bounded by the top-K."""

MEASURED: Mapping[str, str] = {
    "kl_exact": "kl_rollout",
    "tv_exact": "tv_rollout",
    "chi2_exact": "chi2_rollout",
    "kl_lower": "kl_rollout_lower",
    "tv_lower": "tv_rollout_lower",
    "tv_upper": "tv_rollout_upper",
}
"""Detectors that somebody else measured, of the current policy from the rollout, and their fields in TokenStats."""

CONTEXT_BOUNDS = frozenset({"kl_exact", "tv_exact", "chi2_exact", "tv_upper"})
"""Detectors known before the token is drawn, and never below the divergence that they stand for."""

LOWER_BOUNDS = frozenset({"kl_lower", "tv_lower"})
"""Detectors known before the token is drawn that may be below the divergence."""


def detector_needs(detector: Detector, policy: Policy) -> frozenset[str]:
    """The field of Batch or TokenStats that this detector reads."""
    return frozenset({MEASURED.get(detector, f"{policy}_logprobs")})


@dataclass(frozen=True)
class Terms:
    """One (micro-)batch as the parts see it; build it with `Terms.of`."""

    batch: Batch
    mask: Bool[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]
    positive: Bool[Tensor, "B T"]
    logprobs: Float[Tensor, "B T"]
    stats: TokenStats
    denominator: Policy = "old"
    """The policy below the objective's ratio, for parts that follow it."""
    _ratios: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(batch: Batch, stats: TokenStats, denominator: Policy = "old") -> Terms:
        """Mask, widen to float32, broadcast [B] advantages to [B, T]."""
        mask = batch.response_mask
        advantages = batch.advantages if batch.advantages.ndim == 2 else batch.advantages[:, None].expand(mask.shape)
        advantages = masked(_wide(advantages), mask)
        return Terms(
            batch=batch,
            mask=mask,
            advantages=advantages,
            positive=advantages > 0,
            logprobs=masked(_wide(stats.logprobs), mask),
            stats=stats,
            denominator=denominator,
        )

    def with_gradient(self) -> Terms:
        """The same terms with log-probabilities that carry the gradient of the current policy."""
        return replace(self, logprobs=masked(_wide(self.stats.logprobs), self.mask), _ratios={})

    @property
    def entropy(self) -> Float[Tensor, "B T"] | None:
        """Entropies in nats, zero where masked out; made when asked for, since few objectives do."""
        return None if self.stats.entropy is None else masked(_wide(self.stats.entropy), self.mask)

    def draws(self, seed: int, step: int) -> Float[Tensor, "B T"]:
        """A uniform number in [0, 1) per token from (seed, step, sequence id, place in the response) alone.

        Without `sequence_ids` the number of the row stands for the sequence, and the order of the batch matters.
        """
        ids = self.batch.sequence_ids
        if ids is None:
            ids = torch.arange(self.mask.shape[0], device=self.mask.device)
        return token_uniforms(seed, ids, self.mask, step)

    def log_ratio(self, policy: Policy, numerator: Numerator = "current") -> Float[Tensor, "B T"]:
        """log(numerator / policy), with gradient, zero where masked out, clamped to ±20.

        Without `old_logprobs` the current policy is its own old policy: the ratio is 1 and carries the gradient.
        """
        # A ratio first computed without gradient must not silence a part that needs its gradient.
        key = f"{numerator}/{policy}{torch.is_grad_enabled()}"
        if key not in self._ratios:
            above = self.logprobs if numerator == "current" else self.logprobs_of("old")
            self._ratios[key] = log_ratio(above, self.logprobs_of(policy), self.mask)
        return self._ratios[key]

    def logprobs_of(self, policy: Policy) -> Float[Tensor, "B T"]:
        """Log-probabilities that `policy` gave to the sampled tokens; `old` defaults to the current ones, detached."""
        logprobs = getattr(self.batch, f"{policy}_logprobs")
        if logprobs is None:
            if policy == "old":
                return self.logprobs.detach()
            raise DataError(missing(f"{policy}_logprobs", "this objective"))
        return _wide(logprobs)

    def divergence(self, detector: Detector, policy: Policy, numerator: Numerator = "current") -> Float[Tensor, "B T"]:
        """The detector's value per token, detached, zero where masked out; what was measured is of the current one."""
        if detector in MEASURED:
            measured = getattr(self.stats, MEASURED[detector])
            if measured is None:
                raise DataError(missing(MEASURED[detector], f"the detector {detector!r}"))
            return masked(_wide(measured.detach()), self.mask)
        if detector in ("binary_tv", "binary_kl"):
            other = masked(self.logprobs_of(policy), self.mask)
            own = self.logprobs.detach() if numerator == "current" else masked(self.logprobs_of("old"), self.mask)
            return masked(getattr(divergences, detector)(own, other).value, self.mask)
        return getattr(divergences, detector)(self.log_ratio(policy, numerator).detach()).value


def missing(name: str, who: str) -> str:
    """The message for a field that a part needs and the batch lacks."""
    if name.endswith("_logprobs"):
        return (
            f"{who} needs Batch.{name}, which is None: pass the log-probabilities that the {name.split('_')[0]} policy "
            "gave to the sampled tokens, or choose parts that do not need them (objective.needs lists what is needed)"
        )
    if name == "turn_ids":
        return f"{who} needs Batch.turn_ids, which is None: number the turns of each sequence from 0, [B, T] integers"
    hints = {
        "entropy": "ask the model for entropies",
        "group_ids": "number the prompts, one number for all responses to the same",
        "sequence_ids": "give every sequence a number that survives shuffling and splitting",
    }
    owner = "Batch" if name in ("sequence_ids", "group_ids") else "TokenStats"
    hint = hints.get(name, "measure it (holdfast.kernels.lm_head_stats), or choose a sampled detector such as 'k2'")
    return f"{who} needs {owner}.{name}, which is None: {hint}"


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype in (torch.float32, torch.float64) else values.float()

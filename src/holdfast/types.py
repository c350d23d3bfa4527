"""The data that everything else passes around: frozen dataclasses over tensors, no behaviour beyond row selection.

Shapes: B sequences, T response tokens (right padded), V vocabulary. Log-probabilities are natural logarithms (nats).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from holdfast.errors import DataError


@dataclass(frozen=True)
class Batch:
    """What is known about B rollouts before the current policy sees them.

    `advantages` may be [B] (one per sequence) or [B, T]. `response_mask` is data: True on tokens that the policy
    itself sampled (not padding, not tool output). No objective edits it. `sequence_ids` give a sequence an identity
    that survives shuffling and splitting: random draws (Clip-Cov) are made from it. `turn_ids` number the turns of
    a multi-turn rollout from 0, `group_ids` the prompts. `teacher_logprobs` are what a teacher gave to the sampled
    tokens (on-policy distillation).
    """

    advantages: Float[Tensor, "B *T"]
    response_mask: Bool[Tensor, "B T"]
    old_logprobs: Float[Tensor, "B T"] | None = None
    rollout_logprobs: Float[Tensor, "B T"] | None = None
    ref_logprobs: Float[Tensor, "B T"] | None = None
    teacher_logprobs: Float[Tensor, "B T"] | None = None
    turn_ids: Int[Tensor, "B T"] | None = None
    sequence_ids: Int[Tensor, " B"] | None = None
    group_ids: Int[Tensor, " B"] | None = None

    def __post_init__(self) -> None:
        mask = self.response_mask
        if mask.dtype != torch.bool:
            if not bool(((mask == 0) | (mask == 1)).all()):
                raise DataError(f"Batch.response_mask must be boolean or hold only 0 and 1, got {mask.dtype}")
            object.__setattr__(self, "response_mask", mask.bool())
        if mask.ndim != 2:
            raise DataError(f"Batch.response_mask must be [B, T], got shape {tuple(mask.shape)}")
        for name in ("old_logprobs", "rollout_logprobs", "ref_logprobs", "teacher_logprobs", "turn_ids"):
            _check_shape(name, getattr(self, name), [tuple(mask.shape)])
        for name in ("sequence_ids", "group_ids"):
            _check_shape(name, getattr(self, name), [(mask.shape[0],)])
        _check_shape("advantages", self.advantages, [(mask.shape[0],), tuple(mask.shape)])

    def select(self, rows: Int[Tensor, " b"] | slice) -> Batch:
        """The same batch with only these rows."""
        return _select(self, rows)


@dataclass(frozen=True)
class TokenStats:
    """What one forward pass of the current policy says about each sampled token.

    `logprobs` carries the gradient; `entropy` (nats) carries one where an objective asks for it. The rest is
    detached and optional: divergences of the current policy from the rollout policy at the same context,
    KL(rollout||current) in nats and TV in [0, 1]. `*_lower` and `*_upper` come from the engine's top-K and are
    rigorous one-sided bounds; the unmarked ones are exact over the whole vocabulary.
    """

    logprobs: Float[Tensor, "*shape"]
    entropy: Float[Tensor, "*shape"] | None = None
    kl_rollout: Float[Tensor, "*shape"] | None = None
    tv_rollout: Float[Tensor, "*shape"] | None = None
    chi2_rollout: Float[Tensor, "*shape"] | None = None
    kl_rollout_lower: Float[Tensor, "*shape"] | None = None
    tv_rollout_lower: Float[Tensor, "*shape"] | None = None
    tv_rollout_upper: Float[Tensor, "*shape"] | None = None

    def select(self, rows: Int[Tensor, " b"] | slice) -> TokenStats:
        """The same statistics with only these rows."""
        return _select(self, rows)

    def detach(self) -> TokenStats:
        """The same numbers without a gradient."""
        return _map(self, lambda t: t.detach())


@dataclass(frozen=True)
class Counts:
    """Sizes of one whole optimiser step, over all micro-batches and all ranks: the denominators of every mean.

    `sequences` counts sequences with at least one response token; an empty row is padding. Both are 0-d tensors so
    that no device synchronisation is needed, and integers so that they are exact beyond float32's 16.7 million.
    """

    sequences: Real[Tensor, ""]
    tokens: Real[Tensor, ""]

    @staticmethod
    def of(mask: Bool[Tensor, "B T"]) -> Counts:
        """Count one mask that is the whole optimiser step."""
        return Counts(sequences=mask.any(dim=-1).sum(), tokens=mask.sum())

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.sequences + other.sequences, self.tokens + other.tokens)


@dataclass(frozen=True)
class LossOutput:
    """One (micro-)batch's share of the loss: shares of one optimiser step add up, they are never averaged.

    `trust_mask` is True where the objective lets a response token into the gradient of the policy term.
    `metrics` are detached 0-d tensors; `reasons` maps the name of each mask part to the tokens it rejected.
    """

    loss: Float[Tensor, ""]
    metrics: Mapping[str, Tensor]
    trust_mask: Bool[Tensor, "B T"]
    reasons: Mapping[str, Bool[Tensor, "B T"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Rollout:
    """One sampled sequence as it is logged, audited and trained on; token fields have the response's length.

    `rollout_logprobs` are the log-probabilities the engine really sampled with (after temperature and support
    truncation); `trainer_logprobs` the trainer's for the same tokens on the same support. `weight_versions` is the
    policy version that sampled each token. `experts_changed` counts the (layer, slot) choices of a mixture of experts
    in which the trainer's router went elsewhere than the engine's, `support_size` the tokens that could be drawn (0:
    all of the vocabulary). A field the source does not give is None, never zero.

    With p the engine's and q the trainer's probabilities at one context, `kl_exact` is Σ_v p log(p/q) over the whole
    vocabulary, in nats. Where the engine reports its K likeliest tokens alone, `BOUNDS` say what these and the mass of
    all others, p_tail and q_tail, prove: `kl_lower` = Σ_K p log(p/q) + p_tail log(p_tail/q_tail) nats ≤ KL, and
    `tv_lower` = ½(Σ_K|p - q| + |p_tail - q_tail|) ≤ TV ≤ ½(Σ_K|p - q| + p_tail + q_tail) = `tv_upper`, from 0 to 1.

    Raises:
        DataError: bounds without the other two, of another length than the response, or that no two distributions
            have at a token that the policy sampled.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    rollout_logprobs: tuple[float, ...] | None = None
    trainer_logprobs: tuple[float, ...] | None = None
    response_mask: tuple[bool, ...] | None = None
    kl_exact: tuple[float, ...] | None = None
    kl_lower: tuple[float, ...] | None = None
    tv_lower: tuple[float, ...] | None = None
    tv_upper: tuple[float, ...] | None = None
    entropy: tuple[float, ...] | None = None
    advantages: tuple[float, ...] | None = None
    trust_mask: tuple[bool, ...] | None = None
    turn_ids: tuple[int, ...] | None = None
    weight_versions: tuple[int, ...] | None = None
    experts_changed: tuple[int, ...] | None = None
    support_size: tuple[int, ...] | None = None
    reward: float | None = None
    mask_reason: str | None = None
    finish_reason: str | None = None
    step: int | None = None
    sequence_id: int | None = None
    group_id: int | None = None
    environment: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    prompt_text: str | None = None
    response_text: str | None = None
    token_texts: tuple[str, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = {name: values for name in BOUNDS if (values := getattr(self, name)) is not None}
        if not given:
            return
        count = len(self.response_ids)
        own = (True,) * count if self.response_mask is None else self.response_mask
        sizes = {name: len(given[name]) if name in given else "none" for name in BOUNDS} | {"response_mask": len(own)}
        if set(sizes.values()) != {count}:
            found = ", ".join(f"{name}: {size}" for name, size in sizes.items())
            raise DataError(
                f"Rollout has {count} response tokens and bounds of divergences of other lengths, {found}: the three "
                "come together, one number per response token; give all of them, or none"
            )
        stored = {name: torch.tensor(values, dtype=torch.float32) for name, values in given.items()}
        for name, possible in possible_bounds(stored).items():
            for place in (~possible).nonzero().flatten().tolist():
                if own[place]:
                    raise DataError(
                        f"Rollout.{name} is {given[name][place]:g} at response token {place}, allowed are "
                        f"{BOUNDS[name]}: compute the three from one report of the engine's likeliest tokens, both "
                        "policies normalised on the same support (holdfast.core.divergences.top_k)"
                    )


BOUNDS: Mapping[str, str] = {
    "kl_lower": "finite numbers from 0",
    "tv_lower": "numbers from 0 to 1",
    "tv_upper": "numbers from tv_lower to 1",
}
"""Of `Rollout`: what the engine's likeliest tokens prove, and which numbers each can be."""


STATS_BOUNDS: Mapping[str, str] = {
    "kl_rollout_lower": "kl_lower",
    "tv_rollout_lower": "tv_lower",
    "tv_rollout_upper": "tv_upper",
}
"""The same as fields of `TokenStats`, with their names in a `Rollout`."""


def possible_bounds(bounds: Mapping[str, Any]) -> dict[str, Any]:
    """Whether each number of `BOUNDS`, all three as arrays or tensors of one shape, can be what its name says."""
    kl, low, high = (bounds[name] for name in BOUNDS)
    return {
        "kl_lower": (kl >= 0) & (kl < math.inf),
        "tv_lower": (low >= 0) & (low <= 1),
        "tv_upper": (high >= low) & (high <= 1),
    }


def _check_shape(name: str, value: Tensor | None, allowed: list[tuple[int, ...]]) -> None:
    if value is not None and tuple(value.shape) not in allowed:
        shapes = " or ".join(str(shape) for shape in allowed)
        raise DataError(f"Batch.{name} has shape {tuple(value.shape)}; with this response_mask it must be {shapes}")


def _map(record: Any, change: Any) -> Any:
    return replace(
        record,
        **{f.name: change(v) for f in fields(record) if isinstance(v := getattr(record, f.name), torch.Tensor)},
    )


def _select(record: Any, rows: Any) -> Any:
    return _map(record, lambda t: t[rows])

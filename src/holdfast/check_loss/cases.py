"""The batches that a loss is tried on, and what one try gives: its value and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.errors import DataError
from holdfast.types import Batch, TokenStats


@dataclass(frozen=True)
class Case:
    """A micro-batch as a trainer has it in hand, in float64; `advantages` are one number per sequence.

    `tokens`, `sequences` and `parts` are those of the whole optimiser step: its response tokens, its sequences and the
    number of micro-batches that it is cut into.
    """

    batch: Batch
    logprobs: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"]
    tokens: int
    sequences: int
    parts: int = 1

    @property
    def mask(self) -> Bool[Tensor, "B T"]:
        """The response mask."""
        return self.batch.response_mask

    @property
    def lengths(self) -> Float[Tensor, "B 1"]:
        """Response tokens of each sequence, at least 1."""
        return self.mask.sum(dim=-1, keepdim=True).clamp(min=1).to(self.logprobs.dtype)

    def with_advantages(self, advantages: Tensor) -> Case:
        """The same with other advantages, [B]."""
        return replace(self, batch=replace(self.batch, advantages=advantages))

    def select(self, rows: Tensor, parts: int, *, trim: bool = True) -> Case:
        """A micro-batch of these rows, padded to its longest response only, as trainers do."""
        batch = self.batch.select(rows)
        width = int(batch.response_mask.any(dim=0).nonzero().max()) + 1 if trim else batch.response_mask.shape[1]
        cut = {k: v[:, :width] if v.ndim == 2 else v for k, v in vars(batch).items() if v is not None}
        return replace(
            self,
            batch=Batch(**cut),
            logprobs=self.logprobs[rows][:, :width],
            entropy=self.entropy[rows][:, :width],
            parts=parts,
        )

    def stats(self) -> TokenStats:
        """The current policy as our objectives read it."""
        return TokenStats(logprobs=self.logprobs, entropy=self.entropy)


@dataclass(frozen=True)
class Loss:
    """A loss under test, called as its framework calls it.

    `combine` says what the framework does with micro-batches: "sum" (it tells the loss the counts of the whole step, or
    scales it), "mean" (it averages), "once" (it always hands over the whole step). `separate_old` is False where the
    framework has no other policy below the ratio than the one that sampled.
    """

    name: str
    shape: str
    call: Callable[[Case], Any]
    combine: Literal["sum", "mean", "once"]
    separate_old: bool = True
    has_rollout: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)


def evaluate(loss: Loss, case: Case) -> tuple[Tensor, Float[Tensor, "B T"]]:
    """(value, gradient of the current log-probabilities) of one call.

    Raises:
        DataError: the loss raised, returned no tensor or one with several elements, or does not depend on the current
            log-probabilities.
    """
    leaf = case.logprobs.detach().clone().requires_grad_()
    try:
        value = loss.call(replace(case, logprobs=leaf))
    except (DataError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise DataError(f"{loss.name} raised {type(error).__name__}: {error}") from error
    while isinstance(value, tuple | list) and value:
        value = value[0]
    if not isinstance(value, Tensor):
        raise DataError(f"{loss.name} returned {type(value).__name__}, not a tensor or a tuple that begins with one")
    if value.numel() != 1:
        raise DataError(
            f"{loss.name} returned a tensor of shape {tuple(value.shape)}: a loss is one number; reduce it over tokens"
        )
    value = value.reshape(())
    if not value.requires_grad:
        raise DataError(
            f"{loss.name} returned a loss without a gradient: it does not depend on the current log-probabilities "
            "(were they detached, or was it computed under no_grad?)"
        )
    (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True, materialize_grads=True)
    return value.detach(), gradient


def policy_gradient(loss: Loss, case: Case) -> Float[Tensor, "B T"]:
    """The gradient less that at zero advantages: without penalties and bonuses, which do not see the advantage."""
    _, gradient = evaluate(loss, case)
    _, beside = evaluate(loss, case.with_advantages(torch.zeros_like(case.batch.advantages)))
    # A loss that normalises its advantages divides 0 by 0 there; it has been told of as such.
    return gradient - beside if beside.isfinite().all() else gradient


def make_case(
    sequences: int = 8,
    tokens: int = 12,
    *,
    drift: float = 0.3,
    staleness: float = 0.2,
    seed: int = 0,
    holes: bool = True,
) -> Case:
    """Ragged responses; log-ratios θ/old of size `staleness`, old/rollout of size `drift`; holes are tool output."""
    g = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(sequences, tokens, generator=g, dtype=torch.float64)

    lengths = torch.randint(2, tokens + 1, (sequences, 1), generator=g)
    lengths[0] = tokens
    mask = torch.arange(tokens) < lengths
    if holes:
        last = torch.arange(tokens) == lengths - 1
        mask &= (torch.rand(sequences, tokens, generator=g) > 0.15) | last
    logprobs = -torch.rand(sequences, tokens, generator=g, dtype=torch.float64) * 3 - 0.2
    old = (logprobs - noise(staleness)).clamp(max=-1e-3)
    rollout = (old - noise(drift)).clamp(max=-1e-3)
    advantages = torch.randn(sequences, generator=g, dtype=torch.float64)
    advantages = torch.where(advantages.abs() < 0.1, 0.1, advantages)
    batch = Batch(
        advantages=advantages,
        response_mask=mask,
        old_logprobs=old,
        rollout_logprobs=rollout,
        ref_logprobs=(logprobs - noise(0.2)).clamp(max=-1e-3),
        sequence_ids=torch.arange(sequences),
    )
    return whole(batch, logprobs, torch.rand(sequences, tokens, generator=g, dtype=torch.float64))


def whole(batch: Batch, logprobs: Tensor, entropy: Tensor) -> Case:
    """The case of a batch that is the whole optimiser step."""
    mask = batch.response_mask
    return Case(batch, logprobs, entropy, tokens=int(mask.sum()), sequences=int(mask.any(dim=-1).sum()))


def on_policy(case: Case) -> Case:
    """The same batch where all policies are the current one."""
    own = dict.fromkeys(("old_logprobs", "rollout_logprobs", "ref_logprobs"), case.logprobs.detach())
    return replace(case, batch=replace(case.batch, **own))


def same(first: Tensor, second: Tensor, rtol: float = 1e-5) -> bool:
    """Whether two gradients agree, relative to the largest element; losses may pass through float32."""
    scale = max(float(first.abs().max()), float(second.abs().max()), 1e-30) if first.numel() else 1.0
    return (
        bool(first.shape == second.shape)
        and float((first - second).abs().max() if first.numel() else 0) <= rtol * scale
    )

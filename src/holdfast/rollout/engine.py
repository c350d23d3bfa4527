"""The engine protocol: whatever samples rollouts, and what it must say about each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.core.divergences import Support
from holdfast.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: temperature, then the support (min-p, top-k, top-p), then renormalisation.

    temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 leave the whole vocabulary.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 256

    def __post_init__(self) -> None:
        for name, holds, allowed in (
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("min_p", 0 <= self.min_p < 1, "in [0, 1)"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
        ):
            if not holds:
                raise ConfigError(f"sampling.{name} = {getattr(self, name)!r}: must be {allowed}")

    @property
    def truncates(self) -> bool:
        """Whether some tokens cannot be sampled at all."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


@dataclass(frozen=True)
class Completion:
    """One sampled response: what the engine really did.

    `logprobs` are those of the distribution that was sampled, after temperature and truncation. If asked for:
    `distributions`, the whole of it (log-probabilities, −inf off the support), its K likeliest tokens, distinct,
    likeliest first, and all tokens that could be drawn: `support_ids`, position after position, of which each has
    `support_sizes`. `experts` are those that a mixture chose for all tokens of prompt and response but the last.
    finish_reason "stop" includes the end token.
    """

    token_ids: tuple[int, ...]
    logprobs: Float[Tensor, " T"]
    finish_reason: str
    policy_version: int
    distributions: Float[Tensor, "T V"] | None = None
    top_ids: Int[Tensor, "T K"] | None = None
    top_logprobs: Float[Tensor, "T K"] | None = None
    support_ids: Int[Tensor, " M"] | None = None
    support_sizes: Int[Tensor, " T"] | None = None
    experts: Int[Tensor, "M layers K"] | None = None


@runtime_checkable
class Engine(Protocol):
    """Samples responses from its own copy of the policy."""

    @property
    def policy_version(self) -> int:
        """The version of the weights that `generate` uses now."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seed: int,
        sequence_ids: Sequence[int],
        return_distributions: bool = False,
        return_top: int = 0,
        return_support: bool = False,
    ) -> list[Completion]:
        """One response per prompt; each draw depends on (seed, sequence id, position) only.

        `return_top` is the number K of likeliest tokens to report per position, `return_support` asks for all that
        could be drawn.
        """
        ...

    def sync(self, model: torch.nn.Module, version: int) -> None:
        """Take over the weights of `model`, which are the policy's version `version`."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must give back to `load_state_dict`."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        ...


@runtime_checkable
class Sleeper(Protocol):
    """An engine that can rest between a batch and the next `sync`."""

    def sleep(self) -> None:
        """Give memory back; `sync` wakes the engine."""
        ...


def sampling_logprobs(logits: Float[Tensor, "B V"], sampling: Sampling) -> Float[Tensor, "B V"]:
    """Log-probabilities of the distribution that is sampled: temperature, support, renormalised; −inf off the support.

    The support is that of `holdfast.core.divergences.Support`. Greedy puts everything on the likeliest token.
    """
    if sampling.temperature == 0:
        best = logits.argmax(dim=-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(-1, best, 0.0)
    scaled = logits.float() if sampling.temperature == 1 else logits.float() / sampling.temperature
    if sampling.truncates:
        support = Support(top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p)
        scaled = scaled.masked_fill(~support.kept(scaled), -torch.inf)
    return scaled.log_softmax(dim=-1)

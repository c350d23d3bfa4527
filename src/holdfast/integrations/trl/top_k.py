"""What the engine's K likeliest tokens prove: from vLLM, or a rollout function, through TRL, to the loss.

TRL keeps one log-probability per token, the first that vLLM lists: with K above 0 that is the likeliest token's, which
need not be the sampled one. Here the sampled one is found by its id before TRL sees it, and the list travels with it,
since TRL's tool loop cuts and joins completions: a `Sampled` is a number to TRL and the whole report to us.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from holdfast.core.divergences import top_k
from holdfast.errors import ConfigError, DataError
from holdfast.kernels import Head, lm_head_stats, logit_form
from holdfast.types import TokenStats

ROWS = 4096
"""Tokens whose K log-probabilities exist in float32 at a time."""


class Sampled(float):
    """Log-probability of a sampled token, with the ids and log-probabilities of the likeliest ones."""

    ids: Sequence[int]
    logprobs: Sequence[float | None]

    @staticmethod
    def of(token: int, ids: Sequence[int], logprobs: Sequence[float | None], where: str) -> Sampled:
        """Raises DataError where the engine did not report the token that it sampled."""
        if token not in ids:
            raise DataError(
                f"{where}: the engine sampled token {token} and reported {list(ids)} without it, so its "
                "log-probability is unknown; logprobs and logprob_token_ids must contain the sampled token"
            )
        own = logprobs[ids.index(token)]
        value = Sampled(math.nan if own is None else own)
        value.ids, value.logprobs = ids, logprobs
        return value


def sampled(
    completion_ids: Sequence[Sequence[int]],
    logprobs: Sequence[Sequence[Sequence[float | None]]],
    token_ids: Sequence[Sequence[Sequence[int]]],
) -> list[list[Sampled]]:
    """One number per sampled token, in the place of the lists [B, T, K] that vLLM and rollout functions return."""
    rows = zip(completion_ids, logprobs, token_ids, strict=True)
    return [
        [
            Sampled.of(token, list(ids), list(values), f"completion {number}, token {place}")
            for place, (token, values, ids) in enumerate(zip(*row, strict=True))
        ]
        for number, row in enumerate(rows)
    ]


def report_likeliest(generation: Any, count: int) -> None:
    """Let TRL's VLLMGeneration ask vLLM for `count` tokens, and return the sampled one in front of each list."""
    generation.logprobs = count
    generate = generation.generate

    def with_reports(*args: Any, **options: Any) -> Any:
        prompts, completions, logprobs, token_ids = generate(*args, **options)
        if token_ids is None:
            raise DataError("top_logprobs: vLLM returned no token ids beside its log-probabilities; update it, or 0")
        first = [[[one] for one in row] for row in sampled(completions, logprobs, token_ids)]
        return prompts, completions, first, token_ids

    generation.generate = with_reports


def tables(
    logprobs: Sequence[Sequence[Any]], count: int, width: int, device: Any
) -> tuple[Int[Tensor, "B T K"], Float[Tensor, "B T K"]]:
    """Ids and log-probabilities of the `count` likeliest tokens of each position; -inf where nothing was reported.

    Tokens without a report (tool output, padding) have -inf throughout.
    """
    ids = np.zeros((len(logprobs), width, count), dtype=np.int32)
    values = np.full(ids.shape, -np.inf, dtype=np.float32)
    for row, sequence in enumerate(logprobs):
        for place, one in enumerate(sequence):
            if isinstance(one, Sampled):
                # Sorted by rank: what is cut off is the sampled token, where it is not among the likeliest.
                found = [(t, v) for t, v in zip(one.ids, one.logprobs, strict=True) if v is not None and v == v][:count]
                if found:
                    ids[row, place, : len(found)], values[row, place, : len(found)] = zip(*found, strict=True)
    return torch.from_numpy(ids).to(device), torch.from_numpy(values).to(device)


@contextmanager
def hidden_states(model: Any, wanted: bool) -> Iterator[list[Tensor]]:
    """Collects the last hidden states of every forward pass of the backbone, without a gradient, where `wanted`."""
    seen: list[Tensor] = []
    if not wanted:
        yield seen
        return
    hook = _backbone(model).register_forward_hook(
        lambda module, inputs, output: seen.append(output.last_hidden_state.detach())
    )
    try:
        yield seen
    finally:
        hook.remove()


@torch.no_grad()
def with_bounds(
    stats: TokenStats,
    hidden: Float[Tensor, "B S d"],
    model: Any,
    temperature: float,
    inputs: Any,
    mask: Bool[Tensor, "B T"],
    in_float32: bool = False,
) -> TokenStats:
    """`stats` with what the engine's likeliest tokens prove; lower bounds 0 and the upper bound 1 without a report.

    One more product with the LM head, without a gradient. Raises ConfigError where this head's log-probabilities of
    the sampled tokens are not the trainer's own: the model does something else to its logits.
    """
    ids, reported = inputs["top_ids"], inputs["top_logprobs"]
    length = mask.shape[1]
    known = mask & (reported > -math.inf).any(dim=-1)
    states = hidden[:, -length - 1 : -1][known]
    kind = states.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
    head = _head(model, torch.float32 if in_float32 else dtype)
    states = states.to(head.weight.dtype)
    targets, chosen, own = inputs["completion_ids"][known], ids[known].long(), stats.logprobs.detach()[known]
    bounds = [states.new_zeros(len(states), dtype=torch.float32) for _ in range(3)]
    for first in range(0, len(states), ROWS):
        rows = slice(first, first + ROWS)
        with torch.autocast(kind, enabled=False):
            found = lm_head_stats(
                states[rows], head, targets[rows], temperature=temperature, outputs=(), gather_ids=chosen[rows]
            )
        _compare(found.logprobs, own[rows], states.dtype)
        rollout = reported[known][rows]
        # Padding is -inf on both sides.
        assert found.gathered_logprobs is not None
        current = torch.where(rollout > -math.inf, found.gathered_logprobs.float(), -math.inf)
        proven = top_k(current, rollout)
        for column, value in zip(bounds, (proven.kl_lower, proven.tv_lower, proven.tv_upper), strict=True):
            column[rows] = value.value
    low, tv_low, tv_high = (
        torch.full(mask.shape, fill, device=mask.device).masked_scatter(known, column)
        for fill, column in zip((0.0, 0.0, 1.0), bounds, strict=True)
    )
    changed: dict[str, Any] = {"kl_rollout_lower": low, "tv_rollout_lower": tv_low, "tv_rollout_upper": tv_high}
    return TokenStats(logprobs=stats.logprobs, entropy=stats.entropy, **changed)


def refuse_sharded(accelerator: Any) -> None:
    """The head is multiplied outside the model's forward pass, where a sharded weight is not whole."""
    stage = getattr(getattr(accelerator.state, "deepspeed_plugin", None), "zero_stage", 0)
    if getattr(accelerator.state, "fsdp_plugin", None) is not None or stage == 3:
        raise ConfigError(
            "top_logprobs: FSDP and DeepSpeed ZeRO-3 shard the LM head, which is needed whole; use DDP or ZeRO-2, or "
            "top_logprobs = 0"
        )


def _compare(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    near = 1e-3 if dtype == torch.float32 else 0.1
    off = (ours - theirs).abs()
    if off.numel() and float((off / (1 + theirs.abs())).max()) > near:
        raise ConfigError(
            f"top_logprobs: this model's LM head gives log-probabilities {float(off.max()):.2g} nats from those that "
            "TRL trains on: it does something to its logits that is not known here; use top_logprobs = 0"
        )


def _backbone(model: Any) -> nn.Module:
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return inner.base_model


def _head(model: Any, dtype: torch.dtype) -> Head:
    """The head with the factors and the soft-cap that TRL applies."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    layer, config = inner.get_output_embeddings(), inner.config.get_text_config()
    if type(layer) is not nn.Linear:
        raise ConfigError(f"top_logprobs: the output layer is {type(layer).__name__}, not one linear layer; use 0")
    bias = None if layer.bias is None else layer.bias.detach().to(dtype)
    return Head(layer.weight.detach().to(dtype), bias, *logit_form(config))

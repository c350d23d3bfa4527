"""What an engine needs of a model: read prompts once, then one token per row and step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from holdfast.rollout.embedded.drawing import Drawn, next_tokens
from holdfast.rollout.embedded.quantize import engine_copy, load_weights
from holdfast.rollout.engine import Sampling


@runtime_checkable
class Decoding(Protocol):
    """The key-value cache of a batch whose rows all continue at the same step."""

    def step(self, tokens: Tensor, uniforms: Tensor, sampling: Sampling) -> Drawn:
        """Feed one token to each row and draw the next, by a number in [0, 1) for each."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """A copy of the policy in the engine's numerics."""

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the weights of a state dict, which nobody may change afterwards."""
        ...

    def start(self, prompts: Sequence[Sequence[int]], owners: Tensor, max_tokens: int) -> tuple[Decoding, Tensor]:
        """Read distinct prompts; row i of the batch continues prompt `owners[i]` (sorted). With logits [rows, V]."""
        ...


class HubDecoder:
    """Any Hugging Face causal language model, through its own forward pass.

    Prompts are padded on the left and masked; positions count real tokens only. Without a `precision` it runs `model`
    itself, which is neither copied nor changed.
    """

    def __init__(self, model: Any, precision: str | None, pad_token_id: int) -> None:
        self.model: Any = model if precision is None else engine_copy(model, precision)
        self.pad_token_id = pad_token_id

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the weights of a state dict."""
        load_weights(self.model, weights)

    def start(self, prompts: Sequence[Sequence[int]], owners: Tensor, max_tokens: int) -> tuple[HubDecoding, Tensor]:
        """Read distinct prompts, then repeat the cache for the rows that share one."""
        from holdfast.rollout.embedded.cache import roomy_cache

        longest = max(map(len, prompts))
        tokens = torch.full((len(prompts), longest), self.pad_token_id, device=owners.device)
        mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        ragged = not bool(mask.all())
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        cache = roomy_cache(self.model, longest + max_tokens)
        output = self.model(
            input_ids=tokens,
            attention_mask=mask if ragged else None,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache.batch_select_indices(owners)
        logits = output.logits[:, -1].float()[owners]
        return HubDecoding(self.model, cache, positions[owners, -1], mask[owners] if ragged else None), logits


class HubDecoding:
    """A batch in progress on a Hugging Face model (see Decoding)."""

    def __init__(self, model: Any, cache: Any, positions: Tensor, mask: Tensor | None) -> None:
        self.model, self.cache, self.positions, self.mask = model, cache, positions, mask

    def step(self, tokens: Tensor, uniforms: Tensor, sampling: Sampling) -> Drawn:
        """Feed one token to each row and draw the next."""
        self.positions = self.positions + 1
        if self.mask is not None:
            self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        output = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.positions[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        return next_tokens(output.logits[:, -1].float(), uniforms, sampling)

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        self.cache.batch_select_indices(rows)
        self.positions = self.positions[rows]
        self.mask = None if self.mask is None else self.mask[rows]

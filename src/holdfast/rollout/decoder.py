"""What an engine needs of a model: read prompts once, then one token per row and step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from holdfast.rollout.quantize import engine_copy, load_weights


@runtime_checkable
class Decoding(Protocol):
    """The key-value cache of a batch whose rows all continue at the same step.

    Rows are kept by `keep`, which drops all others; `step` feeds one token to each row. Both logits are [rows, V].
    """

    logits: Tensor

    def step(self, tokens: Tensor) -> None: ...

    def keep(self, rows: Tensor) -> None: ...


@runtime_checkable
class Decoder(Protocol):
    """A copy of the policy in the engine's numerics."""

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the weights of a state dict, which nobody may change afterwards."""
        ...

    def start(self, prompts: Sequence[Sequence[int]], owners: Tensor, max_tokens: int) -> Decoding:
        """Read distinct prompts; row i of the batch continues prompt `owners[i]` (sorted)."""
        ...


class HubDecoder:
    """Any Hugging Face causal language model, through its own forward pass.

    Prompts are padded on the left and masked; positions count real tokens only.
    """

    def __init__(self, model: Any, precision: str, pad_token_id: int) -> None:
        self.model: Any = engine_copy(model, precision)
        self.pad_token_id = pad_token_id

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the weights of a state dict."""
        load_weights(self.model, weights)

    def start(self, prompts: Sequence[Sequence[int]], owners: Tensor, max_tokens: int) -> HubDecoding:
        """Read distinct prompts, then repeat the cache for the rows that share one."""
        from holdfast.rollout.cache import roomy_cache

        longest = max(map(len, prompts))
        tokens = torch.full((len(prompts), longest), self.pad_token_id, device=owners.device)
        mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        ragged = not bool(mask.all())
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        cache = roomy_cache(self.model)
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
        return HubDecoding(self.model, cache, logits, positions[owners, -1], mask[owners] if ragged else None)


class HubDecoding:
    """A batch in progress on a Hugging Face model (see Decoding)."""

    def __init__(self, model: Any, cache: Any, logits: Tensor, positions: Tensor, mask: Tensor | None) -> None:
        self.model, self.cache, self.logits, self.positions, self.mask = model, cache, logits, positions, mask

    def step(self, tokens: Tensor) -> None:
        """Feed one token to each row."""
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
        self.logits = output.logits[:, -1].float()

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        self.cache.batch_select_indices(rows)
        self.logits, self.positions = self.logits[rows], self.positions[rows]
        self.mask = None if self.mask is None else self.mask[rows]

"""A decoder for dense Llama-like models (Llama, Qwen2, Qwen3): the same numbers in a fraction of the time.

What it saves against the model's own forward pass: the queries, keys and values of a layer are one product, and so are
the two halves of the gated layer; head norms and the rotary embedding are folded into one pair of tables; the rows of a
group share the keys and values of their prompt, which are read from memory once per group and step; and the keys are
stored transposed, the layout in which the processor multiplies them fastest.

With prompt part P and response part R of the context, for a row with query q (scaled, normed, rotated):
    o = softmax([q Kᵀ_P + bias, q Kᵀ_R]) [V_P; V_R]
Prompts are padded on the right, where causal attention cannot see the padding; bias is −∞ there. All rows are at the
same response step, so the response part is never padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.rollout.embedded.decoder import Decoding
from holdfast.rollout.embedded.drawing import Drawn, next_tokens
from holdfast.rollout.embedded.layers import FusedModel
from holdfast.rollout.embedded.static import (
    FIRST_ROOM,
    StaticDecoding,
    compiled_step,
    prompt_bias,
)
from holdfast.rollout.engine import Sampling


def supports(model: Any) -> bool:
    """Whether the fused decoder computes this model: dense, full attention everywhere, a static rotary embedding."""
    if type(model).__name__ not in ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        return False
    config = model.config
    return (
        set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and config.hidden_act == "silu"
        and (config.rope_parameters or {}).get("rope_type", "default") in ("default", "linear", "llama3", "yarn")
    )


class FusedDecoder(FusedModel):
    """A copy of the policy that decodes in the engine's numerics (holdfast.rollout.embedded.decoder.Decoder)."""

    def __init__(self, model: Any, precision: str, *, compile: bool) -> None:
        """Take the shape of `model`; its weights come with `load`. With `compile`, steps are compiled graphs.

        Raises:
            ConfigError: unknown precision.
        """
        super().__init__(model, precision)
        self.compiled = compiled_step(model.device) if compile else None

    def start(self, prompts: Sequence[Sequence[int]], owners: Tensor, max_tokens: int) -> tuple[Decoding, Tensor]:
        """Read distinct prompts; row i of the batch continues prompt `owners[i]` (sorted). With logits [rows, V]."""
        longest = max(map(len, prompts))
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=owners.device)
        tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=owners.device)
        hidden = self.embedding[tokens]
        tables = self.tables(torch.arange(longest, device=owners.device))
        prefix = []
        for block, (cos, sin) in zip(self.blocks, tables, strict=True):
            queries, keys, values = (part.transpose(1, 2) for part in self.attended(block, hidden, cos, sin))
            mixed = functional.scaled_dot_product_attention(
                queries, keys, values, is_causal=True, scale=1.0, enable_gqa=self.heads != self.shared
            )
            hidden = self.finish(block, hidden, mixed.transpose(1, 2).flatten(2))
            keys, values = (part.flatten(0, 1).to(self.cache_dtype) for part in (keys.transpose(2, 3), values))
            prefix.append((keys, values))
        last = hidden[torch.arange(len(prompts), device=owners.device), lengths - 1]
        kind = FusedDecoding if self.compiled is None else StaticDecoding
        return kind(self, prefix, lengths, owners, max_tokens), self.logits(last)[owners]


class FusedDecoding:
    """A batch in progress (see `Decoding`): prompt keys per group, response keys per row."""

    def __init__(
        self,
        model: FusedDecoder,
        prefix: list[tuple[Tensor, Tensor]],
        lengths: Tensor,
        owners: Tensor,
        max_tokens: int,
    ) -> None:
        self.model, self.prefix, self.lengths, self.max_tokens = model, prefix, lengths, max_tokens
        self.bias = prompt_bias(lengths, int(lengths.max()), model.shared)
        self.ragged = bool((lengths != lengths[0]).any())
        self.steps, self.room = 0, 0
        empty = torch.empty(len(owners) * model.shared, 0, model.width, dtype=model.cache_dtype, device=owners.device)
        self.cache = [(empty, empty) for _ in prefix]
        self._seat(owners)

    def step(self, tokens: Tensor, uniforms: Tensor, sampling: Sampling) -> Drawn:
        """Feed one token to each row and draw the next."""
        if self.steps == self.room:
            self._grow()
        model, hidden = self.model, self.model.embedding[tokens]
        at = self.positions + self.steps if self.ragged else [int(self.lengths[0]) + self.steps]
        for index, block in enumerate(model.blocks):
            cos, sin = self._tables[index]
            queries, keys, values = model.attended(block, hidden, cos[at], sin[at])
            hidden = model.finish(block, hidden, self._attend(index, queries, keys, values))
        self.steps += 1
        return next_tokens(model.logits(hidden), uniforms, sampling)

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        for index, (keys, values) in enumerate(self.cache):  # one layer after the other, so that old ones go at once
            self.cache[index] = self._rows(keys, rows), self._rows(values, rows)
        self._seat(self.owners[rows])

    def _attend(self, index: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The attention output [rows, heads · D] over the prompt and the response so far."""
        stored_keys, stored_values = self.cache[index]
        end = self.steps + 1
        stored_keys[:, self.steps], stored_values[:, self.steps] = keys.flatten(0, 1), values.flatten(0, 1)
        # Kept in the engine's dtype, multiplied in float32: one layer at a time is there in both.
        own_keys, own_values = stored_keys[:, :end].float(), stored_values[:, :end].float()
        old_keys, old_values = (states.float() for states in self.prefix[index])
        own = queries.reshape(own_keys.shape[0], -1, self.model.width)
        prompt = torch.bmm(self._gather(own), old_keys)
        if self.ragged:
            prompt = prompt + self.bias
        scores = torch.cat([self._scatter(prompt), torch.bmm(own, own_keys.transpose(1, 2))], dim=-1).softmax(dim=-1)
        longest = old_keys.shape[-1]
        mixed = torch.bmm(scores[..., longest:], own_values)
        mixed += self._scatter(torch.bmm(self._gather(scores[..., :longest]), old_values))
        return mixed.view(len(self.owners), -1)

    def _gather(self, states: Tensor) -> Tensor:
        """[rows · shared, r, n] per row as [prompts · shared, seats · r, n] per prompt."""
        if self.seats is not None:
            states = self._rows(states, self.seats)
        return _by_prompt(states, self.prompts, self.model.shared)

    def _scatter(self, states: Tensor) -> Tensor:
        """The inverse of `_gather`."""
        rows = _by_row(states, self.model.heads // self.model.shared, self.model.shared, self.prompts)
        return rows if self.places is None else self._rows(rows, self.places)

    def _seat(self, owners: Tensor) -> None:
        """Lay rows out by prompt: `seats` [prompts · places] names the row on each seat, `places` each row's seat.

        Both are None where every prompt has as many rows as the next, and rows are in order already.
        """
        kept, owners, counts = owners.unique_consecutive(return_inverse=True, return_counts=True)
        if len(kept) < len(self.lengths):
            for index, (keys, values) in enumerate(self.prefix):
                self.prefix[index] = self._rows(keys, kept), self._rows(values, kept)
            self.lengths, self.bias = self.lengths[kept], self._rows(self.bias, kept)
        self.owners, self.prompts = owners, len(kept)
        self.positions = self.lengths[owners]
        self.seats = self.places = None
        if bool((counts != counts[0]).any()):
            most, first = int(counts.max()), counts.cumsum(0) - counts
            within = torch.arange(most, device=counts.device).minimum(counts[:, None] - 1)
            self.seats = (first[:, None] + within).flatten()
            self.places = owners * most + torch.arange(len(owners), device=owners.device) - first[owners]

    def _rows(self, states: Tensor, rows: Tensor) -> Tensor:
        return _rows_of(states, rows, self.model.shared)

    def _wider(self, states: Tensor, room: int) -> Tensor:
        wider = states.new_empty(states.shape[0], room, states.shape[2])
        wider[:, : self.steps] = states
        return wider

    def _grow(self) -> None:
        """Make room for response tokens: twice as much each time, at most `max_tokens`, one layer after the other."""
        room = min(self.max_tokens, max(FIRST_ROOM, 2 * self.room))
        for index, (keys, values) in enumerate(self.cache):
            self.cache[index] = self._wider(keys, room), self._wider(values, room)
        self.room = room
        self._tables = self.model.tables(torch.arange(int(self.lengths.max()) + room, device=self.lengths.device))


def _rows_of(states: Tensor, rows: Tensor, shared: int) -> Tensor:
    """These rows of [rows · shared, ...]."""
    return states.unflatten(0, (-1, shared))[rows].flatten(0, 1)


def _by_prompt(states: Tensor, prompts: int, shared: int) -> Tensor:
    """[rows · shared, r, n] as [prompts · shared, rows / prompts · r, n]."""
    _, repeated, width = states.shape
    grouped = states.reshape(prompts, -1, shared, repeated, width).transpose(1, 2)
    return grouped.reshape(prompts * shared, -1, width)


def _by_row(states: Tensor, repeated: int, shared: int, prompts: int) -> Tensor:
    """The inverse of `_by_prompt`."""
    width = states.shape[-1]
    return states.view(prompts, shared, -1, repeated, width).transpose(1, 2).reshape(-1, repeated, width)

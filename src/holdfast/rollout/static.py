"""Decoding at fixed sizes, one compiled graph per size, in which a step costs little more than its matrix products.

A step of a small model is hundreds of kernels of some microseconds each, and starting them takes longer than running
them. Compiled into one graph they are fused, but a graph whose sizes may vary is slower than none. So the sizes are
few: prompts are padded to a multiple of `PROMPT_STEP`, the response has room for a fixed number of tokens and masks
those to come, and rows that have ended stay seated until a power of two holds those that run. The attention is the
fused decoder's; once rows have left, prompts are no longer shared, so that every row is alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from holdfast.rollout.fused import FusedDecoder

Pair = tuple[Tensor, Tensor]
FIRST_ROOM = 128
"""Response tokens that a new cache has room for; the room doubles when they are used up."""
PROMPT_STEP = 64
FEWEST = 8
"""Rows below which no further graph is worth its compilation."""


class StaticDecoding:
    """A batch in progress (see holdfast.rollout.decoder.Decoding)."""

    def __init__(
        self,
        model: FusedDecoder,
        prefix: list[Pair],
        lengths: Tensor,
        owners: Tensor,
        logits: Tensor,
        max_tokens: int,
    ) -> None:
        self.model, self.logits, self.max_tokens = model, logits, max_tokens
        longest = int(lengths.max())
        padded = longest + -longest % PROMPT_STEP
        self.prefix = [
            (functional.pad(k, (0, padded - longest)), functional.pad(v, (0, 0, 0, padded - longest)))
            for k, v in prefix
        ]
        self.bias = prompt_bias(lengths, padded, model.shared)
        self.positions = lengths[owners]
        _, counts = owners.unique_consecutive(return_counts=True)
        if bool((counts != counts[0]).any()):
            self._unshare(owners)
        self.seats = torch.arange(len(owners), device=owners.device)
        self.tokens = torch.zeros_like(owners)
        self.steps, self.room = 0, 0
        empty = logits.new_empty(len(owners) * model.shared, model.width, 0)
        self.cache = [(empty, empty.transpose(1, 2)) for _ in prefix]

    def step(self, tokens: Tensor) -> None:
        """Feed one token to each row; whoever sits on the other seats repeats its last one."""
        if self.steps == self.room:
            self._grow()
        self.tokens[self.seats] = tokens
        slot = torch.full((1,), self.steps, device=tokens.device)
        positions = self.positions + self.steps
        logits = (self.model.compiled or advance)(
            self.model, self.tokens, positions, slot, self.tables, self.prefix, self.cache, self.bias
        )
        self.logits = logits[self.seats]
        self.steps += 1

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows; those that stay move together where a smaller graph holds them."""
        self.seats, self.logits = self.seats[rows], self.logits[rows]
        size = max(FEWEST, 1 << (len(rows) - 1).bit_length())
        if size >= len(self.tokens):
            return
        taken = torch.cat([self.seats, self.seats[-1:].expand(size - len(rows))])
        prompts = len(self.bias) // self.model.shared
        self._unshare(taken // (len(self.tokens) // prompts))
        self.tokens, self.positions = self.tokens[taken], self.positions[taken]
        self.cache = [(self._rows(keys, taken), self._rows(values, taken)) for keys, values in self.cache]
        self.seats = torch.arange(len(rows), device=rows.device)

    def _unshare(self, owners: Tensor) -> None:
        """Give every row a copy of its prompt."""
        self.prefix = [(self._rows(keys, owners), self._rows(values, owners)) for keys, values in self.prefix]
        self.bias = self._rows(self.bias, owners)

    def _rows(self, states: Tensor, rows: Tensor) -> Tensor:
        return rows_of(states, rows, self.model.shared)

    def _grow(self) -> None:
        """Make room for response tokens; what is not written yet is zero, for it is multiplied by zero."""
        self.room = min(self.max_tokens, max(FIRST_ROOM, 2 * self.room))
        more = self.room - self.steps
        self.cache = [(functional.pad(k, (0, more)), functional.pad(v, (0, 0, 0, more))) for k, v in self.cache]
        positions = torch.arange(self.bias.shape[-1] + self.room, device=self.bias.device)
        self.tables = self.model.tables(positions)


def compiled_step(device: torch.device) -> Callable[..., Tensor]:
    """`advance`, compiled for each combination of sizes that comes up."""
    # On a CPU the calls between the kernels weigh as much as the kernels: they are made from C++.
    options: dict[str, Any] = {"cpp_wrapper": device.type == "cpu"}
    return torch.compile(advance, dynamic=False, options=options)


def advance(
    model: FusedDecoder,
    tokens: Tensor,
    positions: Tensor,
    slot: Tensor,
    tables: list[Pair],
    prefix: list[Pair],
    cache: list[Pair],
    bias: Tensor,
) -> Tensor:
    """Logits [rows, V] after one token per row [rows], which is written into `slot` [1] of the cache."""
    hidden = model.embedding[tokens]
    coming = torch.arange(cache[0][0].shape[2], device=slot.device) > slot
    for block, (cos, sin), prompt, own in zip(model.blocks, tables, prefix, cache, strict=True):
        queries, keys, values = model.attended(block, hidden, cos[positions], sin[positions])
        own[0].index_copy_(2, slot, keys.reshape(-1, model.width, 1))
        own[1].index_copy_(1, slot, values.reshape(-1, 1, model.width))
        mixed = _attend(queries.reshape(own[0].shape[0], -1, model.width), prompt, own, bias, coming, model.shared)
        hidden = model.finish(block, hidden, mixed.reshape(len(tokens), -1))
    return model.logits(hidden)


def _attend(queries: Tensor, prompt: Pair, own: Pair, bias: Tensor, coming: Tensor, shared: int) -> Tensor:
    """[rows · shared, r, D]; keys of the prompts [prompts · shared, D, P], of the rows [rows · shared, D, R]."""
    prompts, longest = len(bias) // shared, bias.shape[-1]
    to_prompt = by_row(
        torch.bmm(by_prompt(queries, prompts, shared), prompt[0]) + bias, queries.shape[1], shared, prompts
    )
    to_own = torch.bmm(queries, own[0]).masked_fill(coming, -torch.inf)
    scores = torch.cat([to_prompt, to_own], dim=-1).softmax(dim=-1)
    read = torch.bmm(by_prompt(scores[..., :longest], prompts, shared), prompt[1])
    return torch.bmm(scores[..., longest:], own[1]) + by_row(read, queries.shape[1], shared, prompts)


def prompt_bias(lengths: Tensor, width: int, shared: int) -> Tensor:
    """[prompts · shared, 1, width]: 0 at a prompt's tokens, −∞ at the padding to their right."""
    padding = torch.arange(width, device=lengths.device) >= lengths[:, None]
    bias = torch.zeros(padding.shape, device=lengths.device).masked_fill_(padding, -torch.inf)
    return bias.repeat_interleave(shared, dim=0)[:, None]


def rows_of(states: Tensor, rows: Tensor, shared: int) -> Tensor:
    """These rows of [rows · shared, ...]."""
    return states.unflatten(0, (-1, shared))[rows].flatten(0, 1)


def by_prompt(states: Tensor, prompts: int, shared: int) -> Tensor:
    """[rows · shared, r, n] as [prompts · shared, rows / prompts · r, n]."""
    _, repeated, width = states.shape
    grouped = states.reshape(prompts, -1, shared, repeated, width).transpose(1, 2)
    return grouped.reshape(prompts * shared, -1, width)


def by_row(states: Tensor, repeated: int, shared: int, prompts: int) -> Tensor:
    """The inverse of `by_prompt`."""
    width = states.shape[-1]
    return states.view(prompts, shared, -1, repeated, width).transpose(1, 2).reshape(-1, repeated, width)

"""Decoding at few sizes, one compiled graph per size, in which a step costs little more than its matrix products.

A step of a small model is hundreds of kernels of some microseconds each, and starting them takes longer than running
them. Compiled into one graph they are fused. Rows that have ended stay seated until a power of two holds those that
run, so that the number of rows takes few values; the lengths of prompts and responses, multiples of `STRIDE`, may vary
within a graph, because they are outermost wherever attention reads:

    keys and values of responses [R, heads, D, rows],    scores[r, h, n] = Σ_d k[r, h, d, n] q[h, d, n]

Rows lie innermost, so every processor lane has a row of its own, a token is written in one piece, and nothing is read
beyond the block that is being written. Groups of equal size share their prompts' keys and values until rows leave; then
each row gets its own copy before its response.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.rollout.embedded.drawing import Drawn, next_tokens
from holdfast.rollout.embedded.layers import Block, FusedModel
from holdfast.rollout.engine import Sampling

Pair = tuple[Tensor, Tensor]
FIRST_ROOM = 128
"""Response tokens that a new cache has room for; the room doubles when they are used up."""
STRIDE = 16
"""Tokens of which lengths are multiples, and the tokens of a block of the cache."""
FEWEST = 16
"""Rows below which no further graph is worth its compilation."""
OF_MODEL_OR_LATER_LAYER = re.compile(r"model|^context\.(cache|shared\.keys|shared\.values)\[[1-9]")
"""Names of what a graph's step need not look at; another way to compute has another `form`."""
MOST_GRAPHS = 64
"""Graphs that are compiled in one process."""


class Shared(NamedTuple):
    """What b prompts of up to P tokens left: keys [b · heads, P, D], values [b · heads, D, P], bias [b · heads, P, 1].

    The bias is 0 at a prompt's tokens and −∞ at the padding to their right.
    """

    keys: list[Tensor]
    values: list[Tensor]
    bias: Tensor

    @classmethod
    def of(cls, prefix: list[Pair], lengths: Tensor, heads: int) -> Shared:
        """From keys [b · heads, D, P] and values [b · heads, P, D], layer by layer."""
        more = (0, -prefix[0][0].shape[2] % STRIDE)
        keys = [functional.pad(keys, more).mT.contiguous() for keys, _ in prefix]
        values = [functional.pad(values.mT, more).contiguous() for _, values in prefix]
        return cls(keys, values, prompt_bias(lengths, keys[0].shape[1], heads).mT)

    def of_rows(self, owners: Tensor, heads: int) -> tuple[Iterator[Pair], Tensor]:
        """Keys and values [P, heads, D, rows] by layer and bias [P, rows], a copy of its prompt for each row."""
        keys = (k.unflatten(0, (-1, heads))[owners].permute(2, 1, 3, 0) for k in self.keys)
        values = (v.unflatten(0, (-1, heads))[owners].permute(3, 1, 2, 0) for v in self.values)
        return zip(keys, values, strict=True), self.bias[::heads, :, 0][owners].t()


class Context(NamedTuple):
    """What a step reads: keys and values [blocks, STRIDE, h, D, N] by layer, and their bias [blocks, STRIDE, N].

    They are the responses', with what groups share of their prompts, or those of both, with a copy for each row.
    """

    shared: Shared | None
    cache: list[Pair]
    bias: Tensor


class StaticDecoding:
    """A batch in progress (see holdfast.rollout.embedded.decoder.Decoding)."""

    def __init__(
        self,
        model: FusedModel,
        prefix: list[Pair],
        lengths: Tensor,
        owners: Tensor,
        max_tokens: int,
    ) -> None:
        self.model, self.max_tokens = model, max_tokens
        self.shared: Shared | None = Shared.of(prefix, lengths, model.shared)
        self.owners, self.starts = owners, lengths[owners]
        self.tokens = torch.zeros_like(owners)
        self.seats = torch.arange(len(owners), device=owners.device)
        self.steps, self.used, self.fresh = 0, 0, True
        self.ahead: Iterator[Pair] = iter(())
        self.opened: Context | None = None
        empty = torch.empty(0, model.shared, model.width, len(owners), dtype=model.dtype, device=owners.device)
        self.cache = [(empty, empty) for _ in prefix]
        self.bias = torch.empty(0, len(owners), device=owners.device)
        _, counts = owners.unique_consecutive(return_counts=True)
        if bool((counts != counts[0]).any()):
            self._seat(self.seats)

    def step(self, tokens: Tensor, uniforms: Tensor, sampling: Sampling) -> Drawn:
        """Feed one token to each row and draw the next; whoever sits on the other seats repeats its last one."""
        if self.used == len(self.bias):
            self._grow()
        full = len(self.seats) == len(self.tokens)
        if not full:
            self.tokens[self.seats] = tokens
            tokens, uniforms = self.tokens, uniforms.new_zeros(len(self.tokens)).index_copy(0, self.seats, uniforms)
        self.bias[self.used] = 0.0
        turns, slot = next(self.ahead, None) or self._open()
        run = advance if self.model.compiled is None else self.model.compiled
        assert self.opened is not None
        with self._compiling(self.opened) if self.fresh else nullcontext():
            drawn = run(self.model, self.model.form, sampling, tokens, uniforms, turns, slot, self.opened)
        self.steps, self.used, self.fresh = self.steps + 1, self.used + 1, False
        return drawn if full else drawn.of(self.seats)

    def _open(self) -> Pair:
        """The cache as far as the block to be written: what its steps share; then rotation and slot step by step."""
        end = _rounded(self.used + 1)
        blocks = (end // STRIDE, STRIDE)
        cache = [(keys[:end].unflatten(0, blocks), values[:end].unflatten(0, blocks)) for keys, values in self.cache]
        self.opened = Context(self.shared, cache, self.bias[:end].unflatten(0, blocks))
        block, place = divmod(self.used, STRIDE)
        places = torch.arange(place, STRIDE, device=self.bias.device)
        turns = self.turns[:, :, self.starts + self.steps + (places - place)[:, None]].permute(2, 0, 1, 3).contiguous()
        slots = torch.stack([torch.full_like(places, block), places], dim=1)[:, None]
        self.ahead = iter(zip(turns, slots, strict=True))
        return next(self.ahead)

    def _compiling(self, opened: Context) -> AbstractContextManager[Any]:
        """For the first step at these sizes, in which a graph is compiled if any is: let it take any lengths."""
        shared, cache, bias = opened
        for states in (bias, *(part for pair in cache for part in pair)):
            torch._dynamo.maybe_mark_dynamic(states, 0)
        for states in () if shared is None else (*shared.keys, shared.bias):
            torch._dynamo.maybe_mark_dynamic(states, 1)
        for states in () if shared is None else shared.values:
            torch._dynamo.maybe_mark_dynamic(states, 2)
        # Beyond its limit torch runs the function as it stands, which writes products of whole caches to memory.
        return torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS)

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows; those that stay move together where a smaller graph holds them."""
        self.seats = self.seats[rows]
        if _size(len(rows)) < len(self.tokens):
            self._seat(self.seats)

    def _seat(self, rows: Tensor) -> None:
        """Seat these rows alone, on as many seats as a size has, each with its own copy of its prompt."""
        self.opened = None  # it holds the old cache
        taken = torch.cat([rows, rows[-1:].expand(_size(len(rows)) - len(rows))])
        self.owners, self.starts, self.tokens = self.owners[taken], self.starts[taken], self.tokens[taken]
        for index, (keys, values) in enumerate(self.cache):
            self.cache[index] = keys[: self.used, ..., taken], values[: self.used, ..., taken]
        self.bias = self.bias[: self.used, taken]
        if self.shared is not None:
            before, bias = self.shared.of_rows(self.owners, self.model.shared)
            for index, ((old_keys, old_values), (keys, values)) in enumerate(zip(before, self.cache, strict=True)):
                self.cache[index] = torch.cat([old_keys, keys]), torch.cat([old_values, values])
            self.bias = torch.cat([bias, self.bias])
            self.shared, self.used = None, len(self.bias)
        self.fresh = True
        self.seats = torch.arange(len(rows), device=rows.device)

    def _grow(self) -> None:
        """Make room for response tokens; what is not written yet is zero, for it is multiplied by zero."""
        self.opened = None  # it holds the old cache
        room = min(self.max_tokens, max(FIRST_ROOM, 2 * self.steps))
        more = _rounded(self.used - self.steps + room) - self.used
        wider = (0, 0, 0, 0, 0, 0, 0, more)
        for index, (keys, values) in enumerate(self.cache):  # one layer after the other: old ones go at once
            self.cache[index] = functional.pad(keys, wider), functional.pad(values, wider)
        self.bias = functional.pad(self.bias, wider[4:], value=-torch.inf)
        longest = int(self.starts.max()) + self.steps + more
        cos, sin = self.model.turns(torch.arange(longest, device=self.bias.device))
        self.turns, self.ahead = torch.stack([cos.t(), sin.t()]), iter(())


def compiled_step(device: torch.device) -> Callable[..., Drawn]:
    """`advance`, compiled for each combination of sizes and sampling that comes up."""
    # On a CPU the calls between the kernels weigh as much as the kernels: they are made from C++, and unchecked.
    options: dict[str, Any] = {"cpp_wrapper": device.type == "cpu", "guard_filter_fn": _to_be_checked}
    options |= {"size_asserts": False, "alignment_asserts": False}
    return torch.compile(advance, dynamic=False, options=options)


def _to_be_checked(guards: Any) -> list[bool]:
    """Which of a graph's assumptions to look at before each step.

    `form` stands for all that concern the model, the cache of the first layer for that of all layers.
    """
    return [not guard.is_global and not OF_MODEL_OR_LATER_LAYER.search(guard.name) for guard in guards]


def advance(
    model: FusedModel,
    form: str,
    sampling: Sampling,
    tokens: Tensor,
    uniforms: Tensor,
    turns: Tensor,
    slot: Tensor,
    context: Context,
) -> Drawn:
    """What is drawn after one token per row [N], which is written into the cache at `slot` [1, 2] (block, place).

    uniforms [N], turns [2, D, N].
    """
    if form != model.form:
        raise ValueError(f"a graph of {form} was asked for {model.form}")
    shared, cache, bias = context
    hidden = model.embedding[tokens].t()
    for index, (block, (keys, values)) in enumerate(zip(model.blocks, cache, strict=True)):
        states = block.qkv.columns(_normed(hidden, block.input_norm, model.epsilon)).float()
        queries, key, value = _turned(model, block, states.unflatten(0, (-1, model.width)), turns)
        keys[slot[:, 0], slot[:, 1]] = key[None].to(keys.dtype)
        values[slot[:, 0], slot[:, 1]] = value[None].to(values.dtype)
        prompt = None if shared is None else (shared.keys[index].float(), shared.values[index].float(), shared.bias)
        mixed = _attend(queries.unflatten(0, (model.shared, -1)), keys, values, bias, prompt)
        hidden = hidden + block.output.columns(mixed.reshape(-1, len(tokens)).to(model.dtype))
        gate, up = block.gate_up.columns(_normed(hidden, block.middle_norm, model.epsilon)).chunk(2)
        hidden = hidden + block.down.columns(functional.silu(gate) * up)
    logits = model.head.columns(_normed(hidden, model.norm, model.epsilon)).t().float()
    return next_tokens(logits, uniforms, sampling)


def _normed(hidden: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    """RMS norm of columns [d, N]."""
    wide = hidden.float()
    return (wide * torch.rsqrt(wide.square().mean(dim=0, keepdim=True) + epsilon)).to(hidden.dtype) * gain[:, None]


def _turned(model: FusedModel, block: Block, states: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [heads, D, N] of a layer, normed and rotated."""
    turned, values = states.split([model.heads + model.shared, model.shared])
    if block.normed:
        turned = turned * torch.rsqrt(turned.square().mean(dim=1, keepdim=True) + model.epsilon)
    turned = turned * block.gain[..., None]
    swapped = turned.unflatten(1, (2, -1)).flip(1).flatten(1, 2)
    queries, keys = (turned * turns[0] + swapped * turns[1]).split([model.heads, model.shared])
    return queries, keys, values


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, prompt: tuple[Tensor, Tensor, Tensor] | None
) -> Tensor:
    """[h, g, D, N] from queries of that shape; keys and values [blocks, STRIDE, h, D, N], bias [blocks, STRIDE, N].

    With what prompts share, the softmax goes over both parts: exponentials relative to the larger of their maxima,
    their sums added before the division.
    """
    keys, values = keys.float(), values.float()
    scores = (keys[:, :, :, None] * queries).sum(dim=4) + bias[:, :, None, None]
    top = scores.amax(dim=(0, 1))
    if prompt is None:
        weights = (scores - top).exp()
        return _read(weights, values) / weights.sum(dim=(0, 1))[:, :, None]
    shape = queries.shape
    to_prompt = torch.bmm(prompt[0], _by_prompt(queries, len(prompt[0]))) + prompt[2]
    top = torch.maximum(top, _by_row(to_prompt.amax(dim=1, keepdim=True), shape)[:, :, 0])
    weights = (scores - top).exp()
    on_prompt = (to_prompt - _by_prompt(top[:, :, None], len(prompt[0]))).exp()
    total = weights.sum(dim=(0, 1)) + _by_row(on_prompt.sum(dim=1, keepdim=True), shape)[:, :, 0]
    mixed = _read(weights, values)
    return (mixed + _by_row(torch.bmm(prompt[1], on_prompt), shape)) / total[:, :, None]


def _read(weights: Tensor, values: Tensor) -> Tensor:
    """Σ w[block, r, h, g, n] v[block, r, h, d, n]; in blocks, for all tokens at once are too far apart in memory."""
    return (weights[..., None, :] * values[:, :, :, None]).sum(dim=1).sum(dim=0)


def _by_prompt(states: Tensor, groups: int) -> Tensor:
    """[h, g, D, prompts · m] as [prompts · h, D, g · m]; `groups` is prompts · h."""
    heads, width = states.shape[0], states.shape[2]
    return states.unflatten(3, (groups // heads, -1)).permute(3, 0, 2, 1, 4).reshape(groups, width, -1)


def _by_row(states: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_by_prompt` for states of this shape, up to D."""
    heads, repeated, _, rows = shape
    grouped = states.view(-1, heads, states.shape[1], repeated, states.shape[2] // repeated)
    return grouped.permute(1, 3, 2, 0, 4).reshape(heads, repeated, -1, rows)


def prompt_bias(lengths: Tensor, width: int, shared: int) -> Tensor:
    """[prompts · shared, 1, width]: 0 at a prompt's tokens, −∞ at the padding to their right."""
    padding = torch.arange(width, device=lengths.device) >= lengths[:, None]
    bias = torch.zeros(padding.shape, device=lengths.device).masked_fill_(padding, -torch.inf)
    return bias.repeat_interleave(shared, dim=0)[:, None]


def _size(rows: int) -> int:
    return max(FEWEST, 1 << (rows - 1).bit_length())


def _rounded(length: int) -> int:
    return max(2, -(-length // STRIDE)) * STRIDE

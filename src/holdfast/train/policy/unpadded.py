"""Forward passes over real tokens only, each shared prompt once.

All sequences of a micro-batch lie one after the other in a single row of N tokens: norms, projections and experts never
see padding, and the rollouts of a prompt share its tokens, because under causal attention a prompt's states do not
depend on what follows. Attention alone knows where a sequence begins. With prompt part P and response part R it is

    out_P = causal(q_P, k_P, v_P) once per prompt,    out_R = softmax([q_R k_Pᵀ, causal(q_R k_Rᵀ)]) [v_P; v_R]

Gradients of a shared prompt add up over its rollouts, as they should. transformers calls this through its attention
interface, so every model that uses the interface and plain full attention can do it; `make_unpadded` tries it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

NAME = "holdfast_unpadded"
REFUSED = ("sliding_window", "softcap", "s_aux", "position_bias", "cache")


class Unsupported(Exception):
    """The model's attention asks for something that is not done here."""


@dataclass(frozen=True)
class Part:
    """Attention of b rows: indices of their queries and keys among the N tokens; causal where there is no mask."""

    queries: Int[Tensor, "b Q"]
    keys: Int[Tensor, "b K"]
    mask: Bool[Tensor, "b 1 Q K"] | None = None


@dataclass(frozen=True)
class Layout:
    """Tokens in one row: their ids and positions, where token [B, L] of each sequence lies, and their attention.

    `answers` says where each of the N tokens stands among all queries of all parts.
    """

    input_ids: Int[Tensor, " N"]
    positions: Int[Tensor, " N"]
    tokens: Int[Tensor, "B L"]
    parts: Sequence[Part]
    answers: Int[Tensor, " N"]

    def to(self, device: torch.device) -> Layout:
        """The same on this device."""
        if self.input_ids.device == device:
            return self
        parts = [
            Part(p.queries.to(device), p.keys.to(device), None if p.mask is None else p.mask.to(device))
            for p in self.parts
        ]
        ids, positions, tokens = self.input_ids.to(device), self.positions.to(device), self.tokens.to(device)
        return Layout(ids, positions, tokens, parts, self.answers.to(device))

    def rounded(self, multiple: int) -> Layout:
        """The same with as many more tokens, which nobody reads, as make N a multiple."""
        more = -len(self.input_ids) % multiple
        ids, positions, answers = (functional.pad(x, (0, more)) for x in (self.input_ids, self.positions, self.answers))
        return Layout(ids, positions, self.tokens, self.parts, answers)


def lay_out(
    input_ids: Int[Tensor, "B L"],
    prompt_lengths: Int[Tensor, " B"],
    lengths: Int[Tensor, " B"],
    prompts: Int[Tensor, " B"],
    width: int,
) -> Layout:
    """The row of tokens for right-padded sequences, of which those with the same number in `prompts` share a prompt.

    Prompts are shared where that saves more in the layers (24·width² operations a token) than attention with a mask
    costs beyond causal attention (4·width a pair).
    """
    device, longest = input_ids.device, int(lengths.max())
    column = torch.arange(longest, device=device)
    _, owner = prompts.unique(return_inverse=True)
    heads = prompt_lengths.new_zeros(int(owner.max()) + 1).scatter_(0, owner, prompt_lengths)
    tails = lengths - prompt_lengths
    most, tail = int(heads.max()), int(tails.max())
    saved = int(prompt_lengths.sum() - heads.sum())
    extra = len(heads) * most**2 / 2 + len(owner) * tail * (most + tail) - len(owner) * longest**2 / 2
    if 6 * width * saved <= extra:
        starts = lengths.cumsum(0) - lengths
        tokens = _span(starts, lengths, longest)
        return _layout(input_ids, column < lengths[:, None], tokens, [Part(tokens, tokens)])
    shared = heads.cumsum(0) - heads
    begin = int(heads.sum()) + tails.cumsum(0) - tails
    prefix, suffix = _span(shared, heads, most), _span(begin, tails, tail)
    own = torch.arange(tail, device=device)
    seen = torch.arange(most, device=device) < heads[owner][:, None]
    causal = (own <= own[:, None]).expand(len(owner), -1, -1)
    mask = torch.cat([seen[:, None].expand(-1, tail, -1), causal], dim=2)[:, None]
    head = prompt_lengths[:, None]
    tokens = torch.where(column < head, shared[owner][:, None] + column, begin[:, None] + column - head)
    tokens = torch.where(column < lengths[:, None], tokens, 0)
    parts = [Part(prefix, prefix), Part(suffix, torch.cat([prefix[owner], suffix], dim=1), mask)]
    return _layout(input_ids, column < lengths[:, None], tokens, parts)


def hidden_states(
    model: Any, layout: Layout, row: Int[Tensor, " N"], position: Int[Tensor, " N"]
) -> Float[Tensor, "N d"]:
    """What the head would see at these positions of these sequences."""
    found = model.base_model(
        input_ids=layout.input_ids[None],
        position_ids=layout.positions[None],
        # Of four dimensions: transformers hands such a mask on as it is and makes none of its own.
        attention_mask=layout.positions.new_zeros((1, 1, 1, 1), dtype=torch.bool),
        use_cache=False,
        unpadded_layout=layout,
    )
    return found.last_hidden_state[0].index_select(0, layout.tokens[row, position])


@torch.no_grad()
def make_unpadded(model: Any) -> str:
    """Let the model's attention read layouts, and all else as before; "" or what stands in the way.

    Three short sequences, two of them with the same prompt, are compared with the model's own passes over each alone.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    before = model.config._attn_implementation
    if before == NAME:
        return ""
    if before != "sdpa":
        return f"its attention is {before!r}, not 'sdpa'"
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    device, size = model.device, model.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 6, 5, 0], [3, 2, 1, 1, 0, 0]], device=device) % size
    heads, lengths, prompts = (torch.tensor(x, device=device) for x in ([3, 3, 2], [6, 5, 4], [0, 0, 1]))
    row, position = (torch.arange(6, device=device) < lengths[:, None]).nonzero(as_tuple=True)
    expected = [
        model.base_model(input_ids=x[None, :n], use_cache=False).last_hidden_state[0]
        for x, n in zip(ids, lengths.tolist(), strict=True)
    ]
    obstacle = ""
    try:
        model.config._attn_implementation = NAME
        for width in (size * 100, 0):
            layout = lay_out(ids, heads, lengths, prompts, width)
            found, wanted = hidden_states(model, layout, row, position).float(), torch.cat(expected).float()
            rtol = 1e-4 if wanted.dtype is expected[0].dtype else 5e-2
            if not torch.allclose(found, wanted, rtol=rtol, atol=rtol * float(wanted.abs().max())):
                obstacle = "its states depend on more than the tokens before, so sequences cannot share one row"
    except (Unsupported, TypeError, ValueError, RuntimeError) as error:
        obstacle = f"its forward pass does not take it ({error})"
    if obstacle:
        model.config._attn_implementation = before
    return obstacle


def _attend(
    module: Any,
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B K S D"],
    value: Float[Tensor, "B K S D"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    unpadded_layout: Layout | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of a layout; without one, transformers' own."""
    if unpadded_layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **others)
    for name in REFUSED:
        if others.get(name) is not None:
            raise Unsupported(f"attention with {name}")
    if query.device.type != "cpu":
        return _attend_parts(query, key, value, unpadded_layout, dropout, scaling), None
    # On a CPU the backward pass of attention takes several times as long in bfloat16 as in float32.
    own, wide = value.dtype, torch.promote_types(query.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        query, key, value = (x.to(wide) for x in (query, key, value))
        return _attend_parts(query, key, value, unpadded_layout, dropout, scaling).to(own), None


def _attend_parts(
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B K S D"],
    value: Float[Tensor, "B K S D"],
    layout: Layout,
    dropout: float,
    scaling: float | None,
) -> Float[Tensor, "B N H D"]:
    repeats = query.shape[1] // key.shape[1]
    queries, keys, values = (x[0].transpose(0, 1) for x in (query, key, value))
    found = []
    for part in layout.parts:
        k, v = (_rows(x, part.keys) for x in (keys, values))
        if repeats > 1:
            k, v = (x.repeat_interleave(repeats, dim=1) for x in (k, v))
        out = functional.scaled_dot_product_attention(
            _rows(queries, part.queries), k, v, part.mask, dropout, is_causal=part.mask is None, scale=scaling
        )
        found.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(found).index_select(0, layout.answers)[None]


def _rows(states: Float[Tensor, "N H D"], places: Int[Tensor, "b K"]) -> Float[Tensor, "b H K D"]:
    return states.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)


def _span(starts: Int[Tensor, " b"], lengths: Int[Tensor, " b"], longest: int) -> Int[Tensor, "b longest"]:
    """start, start + 1, ... of each row; where a row ends earlier, any token stands in, whose answer nobody reads."""
    column = torch.arange(longest, device=starts.device)
    return torch.where(column < lengths[:, None], starts[:, None] + column, 0)


def _layout(
    input_ids: Int[Tensor, "B L"], real: Bool[Tensor, "B l"], tokens: Int[Tensor, "B l"], parts: Sequence[Part]
) -> Layout:
    row, column = real.nonzero(as_tuple=True)
    place, count = tokens[row, column], int(tokens.max()) + 1
    ids, positions = input_ids.new_zeros(count), input_ids.new_zeros(count)
    ids[place], positions[place] = input_ids[row, column], column
    queries = torch.cat([part.queries.flatten() for part in parts])
    # Token 0, which stands in for missing ones, is the very first query: the least index is the right one.
    answers = torch.full_like(ids, len(queries))
    answers.scatter_reduce_(0, queries, torch.arange(len(queries), device=ids.device), "amin")
    return Layout(ids, positions, tokens, parts, answers)

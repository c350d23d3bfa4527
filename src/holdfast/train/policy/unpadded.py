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
VARLEN = ("flash_attention_2", "flash_attention_3", "flex_attention")
"""Attention of transformers that takes several sequences in one row as they are (`Packed`)."""
MASKED_PAIR = {"cpu": 1.0, "gpu": 2.0}
"""Time of a pair of tokens under a mask in that of one under causal attention: flash kernels of GPUs take no mask, and
the memory-efficient ones need about twice the time."""


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


@dataclass(frozen=True)
class Packed:
    """Tokens in one row, for attention that knows by itself where sequences begin; every prompt as often as it occurs.

    Sequence i has the tokens `begins[i]` to `begins[i + 1] - 1`, and none has more than `longest`.
    """

    input_ids: Int[Tensor, " N"]
    positions: Int[Tensor, " N"]
    tokens: Int[Tensor, "B L"]
    begins: Int[Tensor, " B+1"]
    longest: int

    def to(self, device: torch.device) -> Packed:
        """The same on this device."""
        ids, positions, tokens = self.input_ids.to(device), self.positions.to(device), self.tokens.to(device)
        return Packed(ids, positions, tokens, self.begins.to(device), self.longest)


def sharing_pays(
    width: int, saved: int, *, prompts: int, rows: int, prompt: int, answer: int, longest: int, cpu: bool
) -> bool:
    """Whether rows of `prompts` distinct prompts, each read once, cost less than rows with a prompt of their own.

    The layers take 24·width² operations for each of the `saved` tokens, attention 4·width a pair, and `MASKED_PAIR`
    as much with the mask that responses then need. `prompt`, `answer` and `longest` (both together) are the greatest
    lengths.
    """
    masked = MASKED_PAIR["cpu" if cpu else "gpu"] * rows * answer * (prompt + answer)
    return 6 * width * saved > prompts * prompt**2 / 2 + masked - rows * longest**2 / 2


def lay_out(
    input_ids: Int[Tensor, "B L"],
    prompt_lengths: Int[Tensor, " B"],
    lengths: Int[Tensor, " B"],
    prompts: Int[Tensor, " B"],
    width: int,
) -> Layout:
    """The row of tokens for right-padded sequences, of which those with the same number in `prompts` share a prompt.

    Prompts are shared where that pays (`sharing_pays`). Everything that is as large as the ids is made
    on their device; the other arguments are on the CPU, so that a GPU is never waited for.
    """
    device, longest = input_ids.device, int(lengths.max())
    _, owner = prompts.unique(return_inverse=True)
    heads = prompt_lengths.new_zeros(int(owner.max()) + 1).scatter_(0, owner, prompt_lengths)
    tails = lengths - prompt_lengths
    most, tail = int(heads.max()), int(tails.max())
    saved = int(prompt_lengths.sum() - heads.sum())
    sizes = {"prompts": len(heads), "rows": len(owner), "prompt": most, "answer": tail, "longest": longest}
    if not sharing_pays(width, saved, **sizes, cpu=device.type == "cpu"):
        tokens = _span(lengths.cumsum(0) - lengths, lengths, longest, device)
        return _layout(input_ids, lengths, tokens, int(lengths.sum()), [Part(tokens, tokens)])
    shared = heads.cumsum(0) - heads
    begin = int(heads.sum()) + tails.cumsum(0) - tails
    prefix, suffix = _span(shared, heads, most, device), _span(begin, tails, tail, device)
    owned, head, ends, starts, first = (
        x.to(device) for x in (owner, prompt_lengths[:, None], lengths[:, None], begin[:, None], shared[owner][:, None])
    )
    own, column = torch.arange(tail, device=device), torch.arange(longest, device=device)
    mask = torch.empty(len(owner), 1, tail, most + tail, dtype=torch.bool, device=device)
    mask[..., :most] = (torch.arange(most, device=device) < heads[owner][:, None].to(device))[:, None, None]
    mask[..., most:] = own <= own[:, None]
    tokens = torch.where(column < head, first + column, starts + column - head)
    tokens = torch.where(column < ends, tokens, 0)
    parts = [Part(prefix, prefix), Part(suffix, torch.cat([prefix[owned], suffix], dim=1), mask)]
    return _layout(input_ids, lengths, tokens, int(heads.sum() + tails.sum()), parts)


def pack_rows(input_ids: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]) -> Packed:
    """The row of tokens for right-padded sequences, none of which shares anything; `lengths` are on the CPU."""
    device, longest = input_ids.device, int(lengths.max())
    begins = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    tokens = _span(begins[:-1], lengths, longest, device)
    row, column = _places(lengths, device)
    return Packed(input_ids[row, column], column, tokens, begins.to(device, torch.int32), longest)


def hidden_states(
    model: Any, layout: Layout | Packed, row: Int[Tensor, " N"], position: Int[Tensor, " N"]
) -> Float[Tensor, "N d"]:
    """What the head would see at these positions of these sequences."""
    if isinstance(layout, Packed):
        named = {"cu_seq_lens_q": layout.begins, "cu_seq_lens_k": layout.begins}
        named |= {"max_length_q": layout.longest, "max_length_k": layout.longest}
        # Flex attention finds the sequences in the positions, which begin anew with each.
        flash = model.config._attn_implementation.startswith("flash")
        others: dict[str, Any] = named if flash else {}
    else:
        # Of four dimensions: transformers hands such a mask on as it is and makes none of its own.
        others = {"attention_mask": layout.positions.new_zeros((1, 1, 1, 1), dtype=torch.bool)}
        others["unpadded_layout"] = layout
    found = model.base_model(
        input_ids=layout.input_ids[None], position_ids=layout.positions[None], use_cache=False, **others
    )
    return found.last_hidden_state[0].index_select(0, layout.tokens[row, position])


@torch.no_grad()
def make_unpadded(model: Any, *, autocast: bool = False) -> str:
    """Let the model's attention read layouts, and all else as before; "" or what stands in the way.

    Three short sequences, two of them with the same prompt, are compared with the model's own passes over each alone;
    with `autocast` in bfloat16, without which flash attention cannot run over float32 weights.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    before = model.config._attn_implementation
    if before == NAME:
        return ""
    if before != "sdpa" and before not in VARLEN:
        return f"its attention is {before!r}, not 'sdpa'"
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    obstacle = ""
    try:
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=autocast and before != "sdpa"):
            if not _same_states(model, NAME if before == "sdpa" else before):
                obstacle = "its states depend on more than the tokens before, so sequences cannot share one row"
    except (Unsupported, TypeError, ValueError, RuntimeError) as error:
        obstacle = f"its forward pass does not take it ({error})"
    if obstacle:
        model.config._attn_implementation = before
    return obstacle


def _same_states(model: Any, attention: str) -> bool:
    """Whether a row of sequences has the states of each alone; leaves the model with this attention."""
    device, size = model.device, model.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 6, 5, 0], [3, 2, 1, 1, 0, 0]], device=device) % size
    heads, lengths, prompts = (torch.tensor(x) for x in ([3, 3, 2], [6, 5, 4], [0, 0, 1]))
    row, position = (x.to(device) for x in (torch.arange(6) < lengths[:, None]).nonzero(as_tuple=True))
    expected = [
        model.base_model(input_ids=x[None, :n], use_cache=False).last_hidden_state[0]
        for x, n in zip(ids, lengths.tolist(), strict=True)
    ]
    wanted = torch.cat(expected).float()
    narrow = expected[0].dtype is not torch.float32 or torch.is_autocast_enabled(device.type)
    rtol = 5e-2 if narrow else 1e-4
    model.config._attn_implementation = attention
    tried: list[Layout | Packed] = [pack_rows(ids, lengths)]
    if attention == NAME:
        tried = [lay_out(ids, heads, lengths, prompts, width) for width in (size * 100, 0)]
    found = [hidden_states(model, layout, row, position).float() for layout in tried]
    return all(torch.allclose(x, wanted, rtol=rtol, atol=rtol * float(wanted.abs().max())) for x in found)


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


def _span(
    starts: Int[Tensor, " b"], lengths: Int[Tensor, " b"], longest: int, device: torch.device
) -> Int[Tensor, "b longest"]:
    """start, start + 1, ... of each row; where a row ends earlier, any token stands in, whose answer nobody reads."""
    column = torch.arange(longest, device=device)
    return torch.where(column < lengths[:, None].to(device), starts[:, None].to(device) + column, 0)


def _places(lengths: Int[Tensor, " B"], device: torch.device) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Row and column of every real token; how many there are is known on the CPU."""
    total, begins = int(lengths.sum()), (lengths.cumsum(0) - lengths).to(device)
    row = torch.arange(len(lengths), device=device).repeat_interleave(lengths.to(device), output_size=total)
    return row, torch.arange(total, device=device) - begins[row]


def _layout(
    input_ids: Int[Tensor, "B L"],
    lengths: Int[Tensor, " B"],
    tokens: Int[Tensor, "B l"],
    count: int,
    parts: Sequence[Part],
) -> Layout:
    row, column = _places(lengths, input_ids.device)
    place = tokens[row, column]
    ids, positions = input_ids.new_zeros(count), input_ids.new_zeros(count)
    ids[place], positions[place] = input_ids[row, column], column
    queries = torch.cat([part.queries.flatten() for part in parts])
    # Token 0, which stands in for missing ones, is the very first query: the least index is the right one.
    answers = torch.full_like(ids, len(queries))
    answers.scatter_reduce_(0, queries, torch.arange(len(queries), device=ids.device), "amin")
    return Layout(ids, positions, tokens, parts, answers)

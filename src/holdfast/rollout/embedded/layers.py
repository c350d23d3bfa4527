"""The layers of dense Llama-like models (Llama, Qwen2, Qwen3) in an engine's numerics, with what can be is one product.

The queries, keys and values of a layer are one product, and so are the two halves of the gated layer; head norms and
the rotary embedding are folded into one pair of tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.rollout.embedded.drawing import Drawn
from holdfast.rollout.embedded.quantize import EngineLinear, Numerics


@dataclass(frozen=True)
class Block:
    """The weights of one layer; gain [query + key heads, D] of the head norms, if any, with the scale of queries."""

    input_norm: Tensor
    qkv: EngineLinear
    gain: Tensor
    normed: bool
    output: EngineLinear
    middle_norm: Tensor
    gate_up: EngineLinear
    down: EngineLinear


class FusedModel:
    """A copy of the policy in the engine's numerics, layer by layer; `compiled` is its decoding step, if it has one."""

    compiled: Callable[..., Drawn] | None = None

    def __init__(self, model: Any, precision: str) -> None:
        """Take the shape of `model`; its weights come with `load`.

        Raises:
            ConfigError: unknown precision.
        """
        import copy

        config = model.config
        self.numerics = Numerics.of(precision)
        self.dtype = torch.bfloat16 if self.numerics.layers == "bfloat16" else torch.float32
        self.cache_dtype = self.numerics.cache
        self.heads, self.shared = config.num_attention_heads, config.num_key_value_heads
        self.width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.layers, self.epsilon = config.num_hidden_layers, config.rms_norm_eps
        self.blocks: list[Block] = []
        self.rotary = copy.deepcopy(model.model.rotary_emb)
        self.form = f"{type(model).__name__} in {precision}: {config.to_json_string()}"

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the weights of a state dict, which nobody may change afterwards; the old layers go first."""
        self.embedding = self._plain(weights, "model.embed_tokens")
        self.norm = self._plain(weights, "model.norm")
        self.blocks.clear()
        self.head = EngineLinear(self.numerics.head, [weights["lm_head.weight"]], [weights.get("lm_head.bias")])
        self.blocks.extend(self._block(weights, f"model.layers.{index}.") for index in range(self.layers))

    def tables(self, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Per layer (cos, sin) [n, heads, D] with x ↦ x · cos + roll(x, D/2) · sin the norm's gain, rotation and scale.

        With gain g, rotate(g x) = g x cos + [−(g x)₂, (g x)₁] sin; queries carry the factor D^(−1/2).
        """
        cos, sin = (table[:, None] for table in self.turns(positions))
        gains = [block.gain for block in self.blocks]
        return [(cos * gain, sin * gain.roll(self.width // 2, -1)) for gain in gains]

    def turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The rotation (cos, sin) [n, D] with x ↦ x · cos + roll(x, D/2) · sin."""
        cos, sin = (t[0].float() for t in self.rotary(torch.zeros(1, device=positions.device), positions[None]))
        half = self.width // 2
        return cos, torch.cat([-sin[:, :half], sin[:, half:]], dim=1)

    def attended(self, block: Block, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values [..., heads, D], normed and rotated: float32, but rounded as a cache holds them."""
        normed = functional.rms_norm(hidden, hidden.shape[-1:], block.input_norm, self.epsilon)
        states = block.qkv(normed).float().unflatten(-1, (-1, self.width))
        turned, values = states.split([self.heads + self.shared, self.shared], dim=-2)
        if block.normed:
            turned = functional.rms_norm(turned, (self.width,), None, self.epsilon)
        turned = torch.addcmul(turned * cos, turned.roll(self.width // 2, -1), sin)
        queries, keys = turned.split([self.heads, self.shared], dim=-2)
        return queries, keys.to(self.cache_dtype).float(), values

    def finish(self, block: Block, hidden: Tensor, mixed: Tensor) -> Tensor:
        """The rest of a layer after attention."""
        hidden = hidden + block.output(mixed.to(self.dtype))
        normed = functional.rms_norm(hidden, hidden.shape[-1:], block.middle_norm, self.epsilon)
        gate, up = block.gate_up(normed).chunk(2, dim=-1)
        return hidden + block.down(functional.silu(gate) * up)

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, V] in float32."""
        normed = functional.rms_norm(hidden, hidden.shape[-1:], self.norm, self.epsilon)
        # A layer answers in the dtype that it was given: logits of a wide head stay wide, those of a narrow one do not.
        return self.head(normed.to(torch.bfloat16 if self.numerics.head == "bfloat16" else torch.float32)).float()

    def _block(self, weights: Mapping[str, Tensor], name: str) -> Block:
        attention, gated = f"{name}self_attn.", f"{name}mlp."
        normed = f"{attention}q_norm.weight" in weights
        gain = torch.ones(self.heads + self.shared, self.width, device=self.embedding.device)
        if normed:
            gain[: self.heads] = weights[f"{attention}q_norm.weight"]
            gain[self.heads :] = weights[f"{attention}k_norm.weight"]
        gain[: self.heads] *= self.width**-0.5
        return Block(
            input_norm=self._plain(weights, f"{name}input_layernorm"),
            qkv=self._linear(weights, *(f"{attention}{part}_proj" for part in "qkv")),
            gain=gain,
            normed=normed,
            output=self._linear(weights, f"{attention}o_proj"),
            middle_norm=self._plain(weights, f"{name}post_attention_layernorm"),
            gate_up=self._linear(weights, f"{gated}gate_proj", f"{gated}up_proj"),
            down=self._linear(weights, f"{gated}down_proj"),
        )

    def _plain(self, weights: Mapping[str, Tensor], name: str) -> Tensor:
        return weights[f"{name}.weight"].detach().to(self.dtype)

    def _linear(self, weights: Mapping[str, Tensor], *names: str) -> EngineLinear:
        stacked = [weights[f"{name}.weight"] for name in names]
        return EngineLinear(self.numerics.layers, stacked, [weights.get(f"{name}.bias") for name in names])

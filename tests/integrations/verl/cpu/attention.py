"""Attention over packed sequences on a CPU, with verl's own all-to-all around it: `attn_implementation=packed`.

verl exchanges heads for sequence (Ulysses) inside flash attention only, which needs a GPU. This keeps verl's exchange,
its padding and slicing, and replaces the kernel between the two exchanges by torch's under a block-diagonal mask.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForTokenClassification
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def packed(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """What transformers calls for a layer: [B, heads, tokens, size] in, [B, tokens, heads, size] out."""
    from verl.models.transformers import monkey_patch

    monkey_patch._flash_attention_forward = _block_diagonal
    heads_behind = (states.transpose(1, 2) for states in (query, key, value))
    position_ids, scale = options["position_ids"], options["scaling"]
    return monkey_patch._ulysses_flash_attention_forward(
        *heads_behind, None, query.shape[2], position_ids=position_ids, softmax_scale=scale
    ), None


def _block_diagonal(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, query_length: int, *args: Any, **options: Any
) -> Tensor:
    """Causal attention within each of the packed sequences, which begin where the position is 0."""
    sequence = (options["position_ids"] == 0).cumsum(dim=-1)
    places = torch.arange(query.shape[1])
    mask = (sequence[:, :, None] == sequence[:, None, :]) & (places[:, None] >= places)
    states = (states.transpose(1, 2) for states in (query, key, value))
    out = torch.nn.functional.scaled_dot_product_attention(
        *states, attn_mask=mask[:, None], scale=options["softmax_scale"], enable_gqa=True
    )
    return out.transpose(1, 2).contiguous()


def critic(*args: Any, attn_implementation: str = "", **options: Any) -> Any:
    """A critic's model: verl asks for flash attention whatever the config says, and draws its head without a seed."""
    torch.manual_seed(0)
    return _load_critic(*args, attn_implementation="sdpa", **options)


_load_critic = AutoModelForTokenClassification.from_pretrained
AutoModelForTokenClassification.from_pretrained = critic  # type: ignore[method-assign]
ALL_ATTENTION_FUNCTIONS.register("packed", packed)
ALL_MASK_ATTENTION_FUNCTIONS.register("packed", flash_attention_mask)

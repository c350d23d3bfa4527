"""Our LM-head kernels in the place of TRL's: log-probability and entropy from hidden states, no logits.

TRL asks its model for both by `model(..., labels=labels, fused_lm_head=True)`; that call is what changes, so that DDP,
FSDP and PEFT wrap the model as before, and generation is untouched. Rows whose tokens get no gradient, such as rejected
sequences, cost nothing in the backward pass.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.utils import FusedCausalLMOutput

from holdfast.errors import ConfigError
from holdfast.kernels import Head, lm_head_stats


def install(model: Any, temperature: float) -> None:
    """Let `model` answer `fused_lm_head=True` with `holdfast.kernels.lm_head_stats`.

    Raises:
        ConfigError: a head that is not one plain linear layer, a mixture of experts (TRL's head makes its balancing
            loss), or a model whose log-probabilities come out otherwise.
    """
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    if type(layer) is not nn.Linear:
        raise ConfigError(f"lm_head = 'holdfast': the output layer is {type(layer).__name__}, not one linear layer")
    if hasattr(config, "output_router_logits"):
        raise ConfigError("lm_head = 'holdfast': a mixture of experts needs TRL's head for its balancing loss: 'trl'")
    forward_of_trl = model.forward

    @functools.wraps(type(model).forward)
    def forward(
        self: Any, *args: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **options: Any
    ) -> Any:
        if not fused_lm_head:
            return forward_of_trl(*args, **options | ({} if labels is None else {"labels": labels}))
        assert labels is not None, "TRL gives the tokens to score as labels"
        options["use_cache"] = False
        hidden = self.base_model(*args, **options).last_hidden_state[:, :-1]
        targets = labels[:, 1:].to(hidden.device)
        mask = targets != -100
        stats = lm_head_stats(hidden[mask], _head(self, hidden.dtype), targets[mask], temperature=temperature)
        # masked_scatter keeps an empty micro-batch connected to the model.
        empty = torch.zeros(mask.shape, device=hidden.device) + 0.0 * hidden.float().sum(dim=-1)
        assert stats.entropy is not None
        logprobs, entropy = (empty.masked_scatter(mask, x.float()) for x in (stats.logprobs, stats.entropy))
        loss = -logprobs.sum() / mask.sum().clamp(min=1)
        return FusedCausalLMOutput(loss=loss, log_probs=logprobs, entropy=entropy, label_mask=mask)

    _compare(model, forward, forward_of_trl)
    model.forward = types.MethodType(forward, model)


def _head(model: Any, dtype: torch.dtype) -> Head:
    """The head under the names that Gemma, Cohere and Granite use; looked up anew, since FSDP replaces parameters."""
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    weight, bias = (x.full_tensor() if hasattr(x, "full_tensor") else x for x in (layer.weight, layer.bias))
    divisor = getattr(config, "logits_scaling", None)
    scale = getattr(config, "logit_scale", None) or (1.0 / divisor if divisor else 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(weight.to(dtype), None if bias is None else bias.to(dtype), float(scale), softcap)


@torch.no_grad()
def _compare(model: Any, forward: Any, forward_of_trl: Any) -> None:
    """Both heads on a few tokens: a model that does something else to its logits is never taken apart."""
    ids = torch.arange(8, device=model.get_output_embeddings().weight.device)[None] % model.config.vocab_size
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "fused_lm_head": True}
    theirs, ours = forward_of_trl(**inputs), forward(model, **inputs)
    near = 1e-3 if model.dtype == torch.float32 else 5e-2
    for name in ("log_probs", "entropy"):
        expected, actual = getattr(theirs, name), getattr(ours, name)
        if not torch.allclose(actual.float(), expected.float(), rtol=near, atol=near):
            raise ConfigError(
                f"lm_head = 'holdfast': this model's {name} differ from those of TRL's head: use lm_head='trl'"
            )

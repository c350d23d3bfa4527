"""Our LM-head kernels in the place of TRL's: log-probability and entropy from hidden states, no logits.

TRL asks its model for both by `model(..., labels=labels, fused_lm_head=True)`; that call is what changes, so that DDP,
FSDP and PEFT wrap the model as before, and generation is untouched. The kernels run inside a call of the output layer:
whatever gathers its weight and reduces its gradient around that call (FSDP, ZeRO-3) does so for them, too. Rows whose
tokens get no gradient, such as rejected sequences, cost nothing in the backward pass.
"""

from __future__ import annotations

import functools
import types
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from holdfast.errors import ConfigError
from holdfast.kernels import Head, lm_head_stats, logit_form


class _Form(NamedTuple):
    """What happens to the logits, and whether the head multiplies in float32 whatever the model does."""

    scale: float
    softcap: float | None
    temperature: float
    in_float32: bool


def install(model: Any, temperature: float, in_float32: bool = False) -> None:
    """Let `model` answer `fused_lm_head=True` with `holdfast.kernels.lm_head_stats`.

    `in_float32` is TRL's `cast_lm_head_to_fp32`: hidden states and head in float32, outside autocast. Otherwise the
    head runs in the dtype that a linear layer would: that of autocast, or that of the hidden states.

    Raises:
        ConfigError: a head that is not one plain linear layer, a mixture of experts (TRL's head makes its balancing
            loss), a model whose log-probabilities come out otherwise, or TRL before 1.15, which asks no model.
    """
    try:
        from trl.trainer.utils import FusedCausalLMOutput
    except ImportError:
        raise ConfigError(
            f"lm_head = 'holdfast' replaces TRL's fused head, which came with 1.15; {version('trl')} is installed: "
            "use lm_head='trl'"
        ) from None
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
        # Looked up anew: wrappers put another module in its place.
        found = self.get_output_embeddings()(hidden[mask], targets=targets[mask])
        # masked_scatter keeps an empty micro-batch connected to the model.
        empty = torch.zeros(mask.shape, device=hidden.device) + 0.0 * hidden.float().sum(dim=-1)
        logprobs, entropy = (empty.masked_scatter(mask, x.float()) for x in found)
        loss = -logprobs.sum() / mask.sum().clamp(min=1)
        return FusedCausalLMOutput(loss=loss, log_probs=logprobs, entropy=entropy, label_mask=mask)

    _teach(layer, _Form(*logit_form(config), temperature, in_float32))
    _compare(model, forward, forward_of_trl, in_float32)
    model.forward = types.MethodType(forward, model)


def _teach(layer: nn.Linear, form: _Form) -> None:
    """Let `layer(hidden, targets=targets)` return log-probabilities and entropies instead of logits."""
    logits_of = layer.forward

    def forward(self: Any, hidden: Tensor, targets: Tensor | None = None) -> Any:
        if targets is None:
            return logits_of(hidden)
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        dtype = torch.float32 if form.in_float32 else dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        head = Head(self.weight.to(dtype), bias, form.scale, form.softcap)
        with torch.autocast(kind, enabled=False):
            stats = lm_head_stats(hidden.to(dtype), head, targets, temperature=form.temperature)
        return stats.logprobs, stats.entropy

    layer.forward = types.MethodType(forward, layer)


@torch.no_grad()
def _compare(model: Any, forward: Any, forward_of_trl: Any, in_float32: bool) -> None:
    """Both heads on a few tokens: a model that does something else to its logits is never taken apart."""
    ids = torch.arange(8, device=model.get_output_embeddings().weight.device)[None] % model.config.vocab_size
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "fused_lm_head": True}
    theirs, ours = forward_of_trl(**inputs), forward(model, **inputs)
    near = 1e-3 if in_float32 or model.dtype == torch.float32 else 5e-2
    for name in ("log_probs", "entropy"):
        expected, actual = getattr(theirs, name), getattr(ours, name)
        if not torch.allclose(actual.float(), expected.float(), rtol=near, atol=near):
            raise ConfigError(
                f"lm_head = 'holdfast': this model's {name} differ from those of TRL's head: use lm_head='trl'"
            )

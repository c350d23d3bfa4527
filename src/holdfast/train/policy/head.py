"""Where a model keeps its language-model head, and what it does to the logits after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from holdfast.kernels import Head, logit_form


@dataclass(frozen=True)
class HeadForm:
    """Final logits from hidden states: cap·tanh(scale·(h·Wᵀ + b) / cap), without the cap where it is None."""

    scale: float = 1.0
    softcap: float | None = None

    def of(self, model: Any, dtype: torch.dtype) -> Head:
        """The model's head as the kernels take it, its weights in the dtype of the hidden states."""
        layer = model.get_output_embeddings()
        bias = None if layer.bias is None else layer.bias.to(dtype)
        return Head(layer.weight.to(dtype), bias, self.scale, self.softcap)

    def logits(self, model: Any, hidden: Float[Tensor, "N d"]) -> Float[Tensor, "N V"]:
        """All logits of these hidden states."""
        logits = model.get_output_embeddings()(hidden) * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def hidden_states(
    model: Any, input_ids: Int[Tensor, "b L"], row: Int[Tensor, " N"], position: Int[Tensor, " N"]
) -> Float[Tensor, "N d"]:
    """What the head would see at these positions."""
    return model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[row, position]


@torch.no_grad()
def find_head(model: Any) -> tuple[HeadForm | None, str]:
    """(form, "") where hidden states and one linear layer give the model's logits, else (None, why not).

    Scale and soft-cap are read from the configuration (`kernels.logit_form`); the result is compared with the model's
    own logits, so that a model that does something else is never taken apart.
    """
    layer = model.get_output_embeddings()
    if type(layer) is not nn.Linear:
        return None, f"its output layer is {type(layer).__name__}, not one plain linear layer"
    form = HeadForm(*logit_form(model.config))
    ids = torch.arange(4, device=layer.weight.device).unsqueeze(0) % layer.weight.shape[0]
    try:
        hidden = hidden_states(model, ids, torch.zeros_like(ids[0]), ids[0])
    except (AttributeError, TypeError) as error:
        return None, f"its hidden states cannot be had apart from its logits ({error})"
    expected = model(input_ids=ids, use_cache=False).logits[0].float()
    logits = form.logits(model, hidden).float()
    rtol = 1e-4 if hidden.dtype in (torch.float32, torch.float64) else 2e-2
    if not torch.allclose(logits, expected, rtol=rtol, atol=rtol * float(expected.abs().max())):
        return None, "hidden states and the output layer do not give its logits: it changes them afterwards"
    return form, ""

"""Engine numerics: copies of a model whose linear layers compute as a quantised engine's would."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from holdfast.errors import ConfigError, nearest

Precision = Literal["float32", "bfloat16", "int8", "int8_weight", "int4_weight", "fp8_weight"]


class QuantizedLinear(nn.Module):
    """A linear layer with weights on a grid of one scale per output channel, and optionally int8 activations.

    int8: activations are rounded too, one scale per row (dynamic, symmetric), so the product is of small integers.
    Held in float32 their sums are exact up to 1040 inputs (127² · 1040 < 2²⁴) and right to 1e-7 beyond: the numbers of an int8 kernel at the speed of a float one. int4_weight, int8_weight, fp8_weight: weights only.
    """

    def __init__(self, source: nn.Linear, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        self.register_buffer("bias", None if source.bias is None else source.bias.detach().float().clone())
        self.load(source.weight.detach())

    def load(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Quantise a new weight [out, in]."""
        weight = weight.detach().float()
        if bias is not None:
            self.bias = bias.detach().float().clone()
        if self.precision == "fp8_weight":
            scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 448
            levels = (weight / scale).to(torch.float8_e4m3fn).float()
        else:
            top = 7 if self.precision == "int4_weight" else 127
            scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / top
            levels = (weight / scale).round()
        if self.precision == "int8":
            self.register_buffer("levels", levels)
            self.register_buffer("scale", scale.squeeze(1))
        else:
            self.register_buffer("weight", levels * scale)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.precision != "int8":
            return linear(inputs, self.weight, self.bias)  # pyright: ignore[reportArgumentType]
        step = inputs.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / 127
        product = linear((inputs / step).round_(), self.levels)  # pyright: ignore[reportArgumentType]
        product = product.mul_(step).mul_(self.scale)  # pyright: ignore[reportArgumentType]
        return product if self.bias is None else product + self.bias


def engine_copy(model: nn.Module, precision: str) -> nn.Module:
    """A copy of `model` in the engine's numerics, without gradient, in evaluation mode.

    Raises:
        ConfigError: unknown precision.
    """
    import copy

    if precision not in get_args(Precision):
        raise ConfigError(f"engine.precision = {precision!r}: {nearest(precision, get_args(Precision))}")
    twin = copy.deepcopy(model).requires_grad_(False).eval()
    if precision == "bfloat16":
        return twin.to(torch.bfloat16)
    twin = twin.float()
    if precision != "float32":
        for name, module in list(twin.named_modules()):
            if isinstance(module, nn.Linear):
                twin.set_submodule(name, QuantizedLinear(module, precision))  # pyright: ignore[reportArgumentType]
    return twin


@torch.no_grad()
def load_weights(twin: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give an engine copy new weights (a state dict of the model that it is a copy of)."""
    quantized = {name: module for name, module in twin.named_modules() if isinstance(module, QuantizedLinear)}
    for name, module in quantized.items():
        module.load(weights[f"{name}.weight"], weights.get(f"{name}.bias"))
    for name, tensor in [*twin.named_parameters(), *twin.named_buffers()]:
        if name in weights and name.rpartition(".")[0] not in quantized:
            tensor.copy_(weights[name])

"""Engine numerics: linear layers that compute as a quantised engine's would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from holdfast.errors import ConfigError, nearest

Precision = Literal["float32", "bfloat16", "int8", "int8_weight", "int4_weight", "fp8_weight"]


def check_precision(precision: str) -> Precision:
    """The same name.

    Raises:
        ConfigError: unknown precision.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"engine.precision = {precision!r}: {nearest(precision, get_args(Precision))}")
    return precision  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Numerics:
    """What an engine computes in: its layers, its LM head, and what keys and values are kept in.

    Written as one precision for all, or with exceptions: "bfloat16,head=float32,cache=float32". Logits of a float32
    head are not rounded; a cache of another dtype than the layers rounds keys, or keeps them as they come.
    """

    layers: Precision
    head: Precision
    cache: torch.dtype

    @staticmethod
    def of(text: str) -> Numerics:
        """Read what is written in `engine.precision`.

        Raises:
            ConfigError: an unknown precision or part.
        """
        name, *parts = (part.strip() for part in text.split(","))
        layers = check_precision(name)
        own = "bfloat16" if layers == "bfloat16" else "float32"
        given: dict[str, str] = {"head": layers, "cache": own}
        for part in parts:
            key, _, value = part.partition("=")
            given[key] = value
        if unknown := sorted(given.keys() - {"head", "cache"}):
            raise ConfigError(
                f"engine.precision = {text!r} names {unknown[0]!r}: after the first precision come head=PRECISION and "
                "cache=float32 or cache=bfloat16, e.g. 'bfloat16,head=float32'"
            )
        if given["cache"] not in ("float32", "bfloat16"):
            raise ConfigError(f"engine.precision = {text!r}: keys and values are kept in float32 or bfloat16")
        return Numerics(layers, check_precision(given["head"]), getattr(torch, given["cache"]))

    @property
    def mixed(self) -> bool:
        """Whether head or cache are not what goes with the layers."""
        return self.head != self.layers or (self.cache is torch.bfloat16) != (self.layers == "bfloat16")


class EngineLinear(nn.Module):
    """y = x Wᵀ + b in the engine's numerics; W [out, in] is given anew with every sync.

    int8: weights on 255 levels with one scale per output channel, activations with one scale per row (both symmetric,
    the latter dynamic), so the product is of small integers. These are held in float32, where their sums are exact up
    to 1040 inputs (127² · 1040 < 2²⁴) and right to 1e-7 beyond: the numbers of an int8 kernel on any processor.
    int8_weight, int4_weight, fp8_weight (e4m3): only the weights are on such a grid. The scales are per row, never per
    batch, so what else is in the batch does not matter. bfloat16: inputs, weights and outputs are rounded to it and
    sums are in float32, also where a CPU has no such products and the weights are held in float32. `wide` is what
    `columns` multiplies by, where it is there.
    """

    weight: Tensor
    wide: Tensor | None
    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, precision: Precision, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        super().__init__()
        self.precision: Precision = precision
        for name in ("weight", "wide", "scale", "bias"):
            self.register_buffer(name, None)
        self.load(weights, biases)

    def load(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        """Take new weights; several are stacked into one product (their output channels follow each other)."""
        dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        weight, self.scale = _on_grid(torch.cat([w.detach() for w in weights]).to(dtype), self.precision)
        given = [bias.detach() for bias in biases if bias is not None]
        self.bias = torch.cat(given).to(dtype) if given else None
        if dtype == torch.bfloat16 and not multiplies_bfloat16(weight.device):
            weight, self.bias = weight.float(), None if self.bias is None else self.bias.float()
            self.weight = self.wide = _laid_out(weight)
        else:
            self.weight, self.wide = _laid_out(weight), _widened(weight)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.scale is None:
            return linear(inputs.to(self.weight.dtype), self.weight, self.bias).to(inputs.dtype)
        step = inputs.abs().amax(dim=-1, keepdim=True).clamp_(min=1e-12).div_(127)
        product = linear((inputs / step).round_(), self.weight).mul_(step).mul_(self.scale)
        return product if self.bias is None else product.add_(self.bias)

    def columns(self, inputs: Tensor) -> Tensor:
        """The same for inputs [in, n] that stand in columns: [out, n]."""
        if self.scale is not None:
            return self(inputs.t()).t()
        product = self.weight @ inputs if self.wide is None else (self.wide @ inputs.float()).to(inputs.dtype)
        return product if self.bias is None else product + self.bias.to(product.dtype)[:, None]


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has fast products of bfloat16; a CPU without AVX-512 takes four times float32's time.

    oneDNN's answer: processors of which it does not say so (arm64 among them) hold such weights in float32.
    """
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _laid_out(weight: Tensor) -> Tensor:
    """The same matrix in the order in which a CPU multiplies a few dozen rows faster; large ones it reorders itself."""
    small = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() <= 1 << 20
    return weight.t().contiguous().t() if small else weight


def _widened(weight: Tensor) -> Tensor | None:
    """Few bfloat16 numbers in float32: a CPU multiplies them before oneDNN, which sums in float32 too, has begun."""
    few = weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and weight.numel() <= 1 << 15
    return _laid_out(weight.float()) if few else None


def _on_grid(weight: Tensor, precision: Precision) -> tuple[Tensor, Tensor | None]:
    """(the weights, None), or for int8 (levels, scale [out])."""
    if precision in ("float32", "bfloat16"):
        return weight, None
    largest = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
    if precision == "fp8_weight":
        scale = largest / torch.finfo(torch.float8_e4m3fn).max
        return (weight / scale).to(torch.float8_e4m3fn).float() * scale, None
    scale = largest / (7 if precision == "int4_weight" else 127)
    levels = (weight / scale).round()
    return (levels, scale.squeeze(1)) if precision == "int8" else (levels * scale, None)


def engine_copy(model: nn.Module, precision: str) -> nn.Module:
    """A copy of any Hugging Face model in the engine's numerics, without gradient, in evaluation mode.

    Raises:
        ConfigError: unknown precision.
    """
    import copy

    numerics = Numerics.of(precision)
    if numerics.mixed:
        raise ConfigError(
            f"engine.precision = {precision!r}: a {type(model).__name__} runs through its own forward pass, in one "
            f"precision; nearest valid value: {numerics.layers!r}"
        )
    kind = numerics.layers
    twin = copy.deepcopy(model).requires_grad_(False).eval()
    if kind == "bfloat16":
        return twin.to(torch.bfloat16)
    twin = twin.float()
    if kind != "float32":
        for name, module in list(twin.named_modules()):
            if isinstance(module, nn.Linear):
                twin.set_submodule(name, EngineLinear(kind, [module.weight], [module.bias]))
    return twin


@torch.no_grad()
def load_weights(twin: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give an engine copy new weights (a state dict of the model that it is a copy of)."""
    quantized = {name: module for name, module in twin.named_modules() if isinstance(module, EngineLinear)}
    for name, module in quantized.items():
        module.load([weights[f"{name}.weight"]], [weights.get(f"{name}.bias")])
    targets: list[tuple[str, Any]] = [*twin.named_parameters(), *twin.named_buffers()]
    for name, tensor in targets:
        if name in weights and name.rpartition(".")[0] not in quantized:
            tensor.copy_(weights[name])

"""The model that is trained: from a folder, from the hub, or tiny and made from the seed; its device and numerics."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from holdfast.errors import ConfigError
from holdfast.rollout.models import character_tokenizer, load_model, tiny_model
from holdfast.train.keep.checkpoint import no_progress_bar
from holdfast.train.policy.replay import Replay
from holdfast.train.settings.config import ModelConfig, RunConfig
from holdfast.train.settings.device import check_attention, device_of
from holdfast.train.settings.seeds import derive_seed


def build_model(config: RunConfig, alphabet: str) -> tuple[Any, Any]:
    """The configured model on its device, without dropout, and its tokenizer.

    Raises:
        ConfigError: the model cannot be loaded, or there is no such device.
    """
    settings = config.model
    device, dtype = device_of(settings), getattr(torch, settings.dtype)
    if settings.source is not None:
        with no_progress_bar():
            model, tokenizer = load_model(settings.source, dtype)
    else:
        tokenizer = character_tokenizer(alphabet)
        sizes = {"hidden": settings.hidden, "layers": settings.layers, "heads": settings.heads}
        model = tiny_model(tokenizer, **sizes, seed=derive_seed(config.seed, "model")).to(dtype)
    return model.to(device).eval(), tokenizer


def use_attention(model: Any, settings: ModelConfig) -> None:
    """Have the model compute attention as `model.attention` says; copies made before stay as they are.

    Raises:
        ConfigError: the model's class, or this machine, does not have it.
    """
    if settings.attention == "auto":
        return
    check_attention(settings)
    try:
        model.set_attn_implementation(settings.attention)
    except (ImportError, ValueError) as error:
        raise ConfigError(f'model.attention = "{settings.attention}": {error}; nearest valid value: "auto"') from error
    if model.config._attn_implementation != settings.attention:  # transformers only warns
        raise ConfigError(
            f'model.attention = "{settings.attention}": {type(model).__name__} cannot change its attention; '
            'nearest valid value: "auto"'
        )


def keep_only_inputs(model: Any, replay: Replay | None = None) -> None:
    """Recompute each layer's activations in the backward pass instead of keeping them, and drop nothing out.

    Both passes send tokens to the same experts, those of `replay` where there is one.

    transformers recomputes in training mode only, in which dropout would make the two passes differ.

    Raises:
        ConfigError: the model's class cannot do it.
    """
    if not model.supports_gradient_checkpointing:
        raise ConfigError(f"model.gradient_checkpointing: {type(model).__name__} does not support it; leave it out")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "hidden_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    model.train()
    # transformers renamed it in the course of version 5.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    again = {} if replay is None else {"context_fn": replay.recomputing}
    enable({"use_reentrant": False, **again})


def compile_layers(model: Any, *, recomputed: bool) -> None:
    """Compile every decoder layer and the norm after them in place, for any length; equal layers share a graph.

    Copies made before, such as the engine's and the reference policy, stay as they are. `recomputed` says whether the
    backward pass computes the layers a second time (`keep_only_inputs`).

    Raises:
        ConfigError: the model has no layers of the kind that transformers recomputes, which are what is compiled.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(f"model.compile: {type(model).__name__} has no layers that can be compiled; leave it out")
    # Calls between kernels are made from C++ where the processor that makes them runs the kernels too; torch cannot do
    # it with layers that are computed a second time.
    options = {"cpp_wrapper": model.device.type == "cpu" and not recomputed}
    within = {part for layer in layers for part in layer.modules()}
    norms = [part for part in model.modules() if part not in within and type(part).__name__.endswith("RMSNorm")]
    for part in (*layers, *norms):
        part.compile(dynamic=True, options=options)

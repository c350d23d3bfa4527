"""The optimiser: torch's AdamW, or torchao's with its state in 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from holdfast.errors import ConfigError
from holdfast.train.settings.config import OptimizerConfig


def make_optimizer(settings: OptimizerConfig, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with these settings over these parameters.

    "adamw8bit" keeps both moments in blocks of 256 numbers of 8 bits with one scale each (Dettmers et al. 2022, 8-bit
    Optimizers via Block-wise Quantization, arXiv 2110.02861), those of tensors below 4096 numbers in 32.

    Raises:
        ConfigError: torchao is asked for and not installed.
    """
    common: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": (settings.beta1, settings.beta2),
        "eps": settings.epsilon,
        "weight_decay": settings.weight_decay,
    }
    if settings.kind == "adamw":
        return torch.optim.AdamW(parameters, **common, fused=True)
    try:
        from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f'optimizer.kind = "adamw8bit" needs the package torchao ({error}): pip install "holdfast-rl[adamw8bit]"; '
            'nearest valid value: "adamw"'
        ) from None
    return AdamW8bit(parameters, **common)

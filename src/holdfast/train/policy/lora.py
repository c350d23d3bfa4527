"""Low-rank adapters through PEFT: what is trained, what engines get, what is saved.

Engines never see an adapter: they get W + (alpha / rank)·B·A under the model's own names.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import ConfigError, DataError
from holdfast.rollout.models import LazyWeights
from holdfast.train.policy.forward import Policy, Sequences
from holdfast.train.settings.config import LoraConfig
from holdfast.types import TokenStats

ADAPTER = "default"


def add_lora(model: Any, settings: LoraConfig, *, base: str, seed: int) -> Any:
    """Freeze the model and put adapters into it, in place; returns PEFT's wrapper around it.

    `base` is the folder or hub name that the saved adapter will name as its base. At the start B = 0: the policy is
    unchanged.

    Raises:
        ConfigError: PEFT is not installed, no layer has one of the names, or one that has is tied to the embedding.
    """
    try:
        import peft  # pyright: ignore[reportMissingImports]
    except ImportError:
        hint = 'pip install "holdfast-rl[lora]", or set lora.rank = 0'
        raise ConfigError(f"[lora] needs the package peft: {hint}") from None
    targets = settings.targets[0] if settings.targets == ["all-linear"] else list(settings.targets)
    wanted = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType] (PEFT computes with floats)
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    embedding = model.get_input_embeddings().weight
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT still uses names that transformers gave up
            torch.manual_seed(seed)
            adapted = peft.get_peft_model(model, wanted)
    except ValueError as error:
        names = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise ConfigError(
            f"lora.targets = {settings.targets}: {error}; linear layers here: {', '.join(names)}"
        ) from None
    tied = [name for name, module in model.named_modules() if _is_adapted(module) and module.weight is embedding]
    if tied:
        raise ConfigError(
            f"lora.targets = {settings.targets}: {tied[0]} is the embedding or tied to it, and the whole weights that "
            "engines get cannot hold such an adapter; name other layers"
        )
    adapted.peft_config[ADAPTER].base_model_name_or_path = base
    return adapted


def _is_adapted(module: Any) -> bool:
    return hasattr(module, "lora_A")


class Merged(nn.Module):
    """The adapted model as engines want it: `state_dict` has the model's own names and whole weights.

    Weights with an adapter are made when they are read, one at a time: all at once they are as large as the model.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.config = model.config
        self._model = (model,)  # in a tuple, so that its parameters are not this module's

    def state_dict(self, *args: Any, **kwargs: Any) -> LazyWeights:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Whole weights by name, as they are when they are read."""
        (model,) = self._model
        made = {f"{n}.weight": partial(_whole_weight, m) for n, m in model.named_modules() if _is_adapted(m)}
        names = {name: name.replace(".base_layer.", ".") for name in model.state_dict() if ".lora_" not in name}
        kept = {names[name]: tensor for name, tensor in model.state_dict().items() if name in names}
        return LazyWeights({name: tensor for name, tensor in kept.items() if name not in made}, made)


@torch.no_grad()
def _whole_weight(layer: Any) -> Tensor:
    weight = layer.base_layer.weight
    return weight + layer.get_delta_weight(ADAPTER).to(weight.dtype)


@dataclass(frozen=True)
class WithoutAdapter:
    """The reference policy: the same model with its adapters switched off, so that no copy is needed."""

    policy: Policy
    adapted: Any

    def stats(self, sequences: Sequences) -> TokenStats:
        """What the base model says."""
        with self.adapted.disable_adapter():
            return self.policy.stats(sequences)


def load_adapter(adapted: Any, folder: Path) -> None:
    """Put a saved adapter's weights into the model.

    Raises:
        DataError: they are missing or belong to another model.
    """
    import peft  # pyright: ignore[reportMissingImports]
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights: Mapping[str, Tensor] = load_file(folder / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise DataError(f"the adapter in {folder} cannot be read: {error}") from None
    found = peft.set_peft_model_state_dict(adapted, dict(weights))
    if found.unexpected_keys:
        raise DataError(f"the adapter in {folder} is of another model: it has {found.unexpected_keys[0]}")

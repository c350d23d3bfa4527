"""What the plug-in relies on inside TRL, in one place: the versions it was written for, and the names it uses.

TRL's losses are private methods, so an upgrade may break the plug-in. It is then refused by version before a run
starts, with the names that changed, instead of failing in the middle of one.
"""

from __future__ import annotations

import inspect
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from holdfast.errors import ConfigError

SUPPORTED = "1.16"

SIGNATURES = {
    "_compute_loss": ("self", "model", "inputs"),
    "_generate_and_score_completions": ("self", "inputs"),
    "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    "_generate_single_turn": (
        "self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images",
    ),
    "_get_per_token_logps_and_entropies": (
        "self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy",
        "compute_aux_loss", "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes",
        "num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
    ),
}  # fmt: skip
"""Methods of GRPOTrainer that are overridden or called, with their parameters."""

ATTRIBUTES = (
    "_buffered_inputs", "_metrics", "_step", "_tokenizer", "aux_loss_enabled", "eos_token_ids",
    "loss_is_scaled_for_ga", "num_generations", "num_generations_eval", "num_iterations", "reward_weights",
    "router_aux_loss_coef",
)  # fmt: skip
"""Attributes of a GRPOTrainer that are read."""


def require_supported() -> None:
    """Raise ConfigError unless TRL is there, of a version that the plug-in was written for."""
    try:
        installed = version("trl")
    except PackageNotFoundError:
        raise ConfigError("the TRL plug-in needs TRL, which is not installed: pip install 'holdfast[trl]'") from None
    if installed.rpartition(".")[0] != SUPPORTED:
        changed = differences()
        raise ConfigError(
            f"trl {installed} is installed; the plug-in is written for {SUPPORTED}.x: pip install 'trl~={SUPPORTED}.0'"
            + (f" (what it relies on and {installed} changed: {'; '.join(changed)})" if changed else "")
        )


def differences(trainer: Any = None) -> list[str]:
    """What the plug-in relies on and this TRL does not have; attributes are checked on a trainer, if one is given."""
    try:
        from trl import GRPOTrainer
    except ImportError as error:
        return [f"trl.GRPOTrainer cannot be imported ({error})"]
    found = []
    for name, expected in SIGNATURES.items():
        method = getattr(GRPOTrainer, name, None)
        actual = None if method is None else tuple(inspect.signature(method).parameters)
        if actual != expected:
            now = "is gone" if actual is None else f"takes ({', '.join(actual)})"
            found.append(f"GRPOTrainer.{name} {now}, expected ({', '.join(expected)})")
    missing = [name for name in ATTRIBUTES if trainer is not None and not hasattr(trainer, name)]
    return found + [f"GRPOTrainer has no attribute {name}" for name in missing]

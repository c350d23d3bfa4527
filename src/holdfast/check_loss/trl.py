"""TRL's trainer without a model: what `GRPOTrainer._compute_loss` reads of itself, and the batch that it is given."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from holdfast.check_loss.cases import Case
from holdfast.errors import DataError
from holdfast.types import Batch

ARGUMENTS: dict[str, Any] = {
    "use_bias_correction_kl": False,
    "delta": None,
    "sapo_temperature_pos": 1.0,
    "sapo_temperature_neg": 1.05,
    "vespo_k_pos": 2.0,
    "vespo_lambda_pos": 3.0,
    "vespo_k_neg": 3.0,
    "vespo_lambda_neg": 2.0,
    "steps_per_generation": 1,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing_kwargs": None,
    "per_device_train_batch_size": 1,
    "entropy_target": None,
    "entropy_coef_delta": 0.0,
    "entropy_coef_min": 0.0,
    "entropy_coef_max": 1.0,
}
"""Of its `args`."""

ATTRIBUTES: dict[str, Any] = {
    "loss_type": "grpo",
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "importance_sampling_level": "token",
    "beta": 0.0,
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "use_vllm": False,
    "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_mode": "sequence_mask",
    "vllm_importance_sampling_clip_min": None,
    "vllm_importance_sampling_clip_max": 3.0,
    "max_completion_length": 1,
    "aux_loss_enabled": False,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "_last_world_entropy": float("inf"),
    "_entropy_window_stats": None,
    "current_gradient_accumulation_steps": 1,
    "scale_rewards": "group",
    "multi_objective_aggregation": "sum_then_normalize",
    "num_generations": 1,
    "num_iterations": 1,
    "mask_truncated_completions": False,
    "pad_to_multiple_of": None,
    "environment_factories": None,
    "environments": None,
    "tools": None,
    "reward_func_names": ["reward"],
    "log_multimodal": False,
}
"""Of itself."""


_PARTS = ("current_gradient_accumulation_steps", "gradient_accumulation_steps", "steps_per_generation")
"""What says how many micro-batches there are, where a generation is one optimiser step."""


class Accelerator:
    """One process."""

    device, num_processes, process_index, sync_gradients = torch.device("cpu"), 1, 0, True

    def gather(self, values: Tensor) -> Tensor:
        return values

    def pad_across_processes(self, values: Tensor, **options: Any) -> Tensor:
        return values

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        return values


def dress(stand_in: Any, settings: Mapping[str, Any]) -> Any:
    """Give an object the attributes of a trainer; raises DataError for settings that TRL 1.16 does not have."""
    if unknown := settings.keys() - ARGUMENTS.keys() - ATTRIBUTES.keys():
        raise DataError(
            f"a trainer has no {', '.join(sorted(unknown))}; it has {', '.join(sorted({**ARGUMENTS, **ATTRIBUTES}))}"
        )
    attributes = {name: settings.get(name, value) for name, value in ATTRIBUTES.items()}
    vars(stand_in).update(
        attributes,
        args=SimpleNamespace(**{name: settings.get(name, value) for name, value in ARGUMENTS.items()}),
        accelerator=Accelerator(),
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        reward_weights=torch.ones(1),
        _tokenizer=SimpleNamespace(pad_token_id=0),
        _entropy_bonus_enabled=attributes["entropy_coef"] != 0 or attributes["use_adaptive_entropy"],
        _metrics={"train": defaultdict(list)},
        _logs=defaultdict(list) | {"rewards": defaultdict(list)},
        _pending_extra_logs={},
        _pending_metrics={},
    )
    return stand_in


def inputs_of(batch: Batch, *, items: Tensor | None = None) -> dict[str, Tensor]:
    """TRL's batch: holes of the response mask are tool tokens, padding is what follows the last response token."""
    mask = batch.response_mask
    completion = mask.flip(-1).cumsum(-1).flip(-1) > 0
    inputs = {
        "prompt_ids": torch.ones(mask.shape[0], 2, dtype=torch.long),
        "prompt_mask": torch.ones(mask.shape[0], 2, dtype=torch.long),
        "completion_ids": torch.ones(mask.shape, dtype=torch.long),
        "completion_mask": completion.long(),
        "tool_mask": (mask | ~completion).long(),
        "advantages": batch.advantages,
        "num_items_in_batch": mask.sum() if items is None else items,
    }
    names = {
        "old_per_token_logps": batch.old_logprobs,
        "sampling_per_token_logps": batch.rollout_logprobs,
        "ref_per_token_logps": batch.ref_logprobs,
    }
    return inputs | {name: value for name, value in names.items() if value is not None}


def trl_call(name: str, found: Any, settings: Mapping[str, Any]) -> Callable[[Case], Any]:
    """A call of a trainer class's `_compute_loss`, or of function(trainer, model, inputs), on a case.

    The trainer is made without its constructor and dressed with what TRL 1.16 reads; the forward pass is the case's.
    TRL tells the loss the tokens of the whole step and the number of micro-batches, and adds their gradients up.
    """
    function = getattr(found, "_compute_loss", None) if inspect.isclass(found) else found
    if function is None:
        raise DataError(f"{name} has no _compute_loss: --shape trl takes a GRPOTrainer class or function(trainer, ...)")
    try:
        inspect.signature(function).bind(None, None, None)
    except TypeError as error:
        raise DataError(f"{name} does not have the signature of --shape trl, (self, model, inputs): {error}") from error

    def call(case: Case) -> Any:
        stand_in = found.__new__(found) if inspect.isclass(found) else SimpleNamespace()
        dress(stand_in, dict.fromkeys(_PARTS, case.parts) | dict(settings))
        vars(stand_in)["_get_per_token_logps_and_entropies"] = lambda *_, **__: (case.logprobs, case.entropy, None)
        return function(stand_in, None, inputs_of(case.batch, items=torch.tensor(case.tokens)))

    dress(SimpleNamespace(), settings)
    return call

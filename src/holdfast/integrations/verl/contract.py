"""What the plug-in relies on inside verl, compared with the verl that is installed: versions are judged by this."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import reduce
from importlib import import_module

from holdfast.integrations.verl.names import TRAINER_MODE

Signature = tuple[str, str, str]
"""Module, name inside it, parameters separated by spaces."""

LEVEL_1: tuple[Signature, ...] = (
    ("verl.trainer.ppo.core_algos", "register_policy_loss", "name"),
    (
        "verl.trainer.ppo.core_algos",
        "compute_policy_loss_vanilla",
        "old_log_prob log_prob advantages response_mask loss_agg_mode config rollout_is_weights",
    ),
    ("verl.utils.config", "validate_config", "config use_reference_policy use_critic"),
)
"""Our losses."""

LEVEL_2: tuple[Signature, ...] = (
    ("verl.workers.utils.losses", "ppo_loss", "config model_output data dp_group"),
    ("verl.workers.utils.padding", "no_padding_2_padding", "tensor data"),
    ("verl.utils.tensordict_utils", "assign_non_tensor", "tensor_dict kwargs"),
    ("verl.utils.tensordict_utils", "get", "tensordict key default"),
    ("verl.utils.tensordict_utils", "pop", "tensordict key default"),
    ("verl.trainer.ppo.core_algos", "get_adv_estimator_fn", "name_or_enum"),
    ("verl.workers.engine_workers", "TrainingWorker.train_mini_batch", "self data"),
    ("verl.workers.engine_workers", "TrainingWorker.train_batch", "self data"),
    ("verl.workers.engine_workers", "TrainingWorker.set_loss_fn", "self loss_fn"),
    ("verl.workers.engine_workers", "ActorRolloutRefWorker.init_model", "self"),
    ("verl.workers.engine.fsdp.transformer_impl", "FSDPEngine.infer_batch", "self data loss_function"),
    ("verl.workers.engine.fsdp.transformer_impl", "FSDPEngine.get_data_parallel_group", "self"),
    ("verl.workers.engine.fsdp.transformer_impl", "FSDPEngine.get_data_parallel_rank", "self"),
    ("verl.workers.engine.fsdp.transformer_impl", "FSDPEngine.get_data_parallel_size", "self"),
    ("verl.workers.engine.fsdp.transformer_impl", "FSDPEngine.is_mp_src_rank_with_outputs", "self"),
    ("verl.workers.engine.fsdp.transformer_impl", "FSDPEngine.eval_mode", "self kwargs"),
    ("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._init_resource_pool_mgr", "self"),
    ("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._build_replay_buffer", "self"),
    ("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._compute_advantage", "self batch metrics"),
    ("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._update_actor", "self batch metrics"),
    (
        "verl.trainer.ppo.v1.trainer_base",
        "PPOTrainer._compute_metrics",
        "self batch metrics timing_raw global_steps epoch",
    ),
    ("verl.utils.metric", "Metric.from_dict", "data aggregation"),
)
"""Our trainer mode, beside what level 1 relies on."""


def differences(signatures: tuple[Signature, ...]) -> Iterator[str]:
    """A sentence for each function that is gone or takes other arguments; nothing where all are as they were."""
    for module, name, expected in signatures:
        try:
            function = reduce(getattr, name.split("."), import_module(module))
        except (ImportError, AttributeError) as error:
            yield f"{module}.{name} is missing ({error})"
            continue
        found = " ".join(inspect.signature(function).parameters)  # pyright: ignore[reportArgumentType]
        if found != expected:
            yield f"{module}.{name}({expected.replace(' ', ', ')}) takes ({found.replace(' ', ', ')})"


def missing_level_2(error: Exception) -> str:
    """Why the trainer mode could not be registered, and what does without it."""
    name = getattr(error, "name", None) or ""
    if name.startswith("transfer_queue"):
        why = "TransferQueue is not installed: pip install TransferQueue"
    elif name.startswith("verl.trainer.ppo.v1"):
        why = "this verl has no v1 trainer: install verl 0.9.0 or newer"
    else:
        why = repr(error)
    return f"trainer_mode={TRAINER_MODE} is not registered with verl ({why}); the losses are, level 1 works"

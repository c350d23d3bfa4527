"""TRL's trainer without a model: its own `_compute_loss` and scoring code, called on a stand-in for `self`."""

import warnings
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from cases import with_gradient
from holdfast import Batch, TokenStats
from oracles.draws import derivatives

with warnings.catch_warnings():
    # The test session turns warnings into errors; those of a peer's imports are not ours to fix.
    warnings.simplefilter("ignore")
    from trl import GRPOTrainer
    from trl.experimental.gmpo import GMPOTrainer

_ARGUMENTS: dict[str, Any] = {
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
_ATTRIBUTES: dict[str, Any] = {
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


class _Accelerator:
    """One process."""

    device, num_processes, process_index, sync_gradients = torch.device("cpu"), 1, 0, True

    def gather(self, values: Tensor) -> Tensor:
        return values

    def pad_across_processes(self, values: Tensor, **options: Any) -> Tensor:
        return values

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        return values


def trainer(**settings: Any) -> Any:
    """The stand-in, with TRL's names of settings; unknown names are refused."""
    unknown = settings.keys() - _ARGUMENTS.keys() - _ATTRIBUTES.keys()
    assert not unknown, unknown
    attributes = {name: settings.get(name, value) for name, value in _ATTRIBUTES.items()}
    arguments = {name: settings.get(name, value) for name, value in _ARGUMENTS.items()}
    stand_in = SimpleNamespace(
        **attributes,
        args=SimpleNamespace(**arguments),
        accelerator=_Accelerator(),
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        get_gamma_weights=GRPOTrainer.get_gamma_weights,
        reward_weights=torch.ones(1),
        _tokenizer=SimpleNamespace(pad_token_id=0),
        _entropy_bonus_enabled=attributes["entropy_coef"] != 0 or attributes["use_adaptive_entropy"],
        _metrics={"train": defaultdict(list)},
        _logs=defaultdict(list) | {"rewards": defaultdict(list)},
        _pending_extra_logs={},
        _pending_metrics={},
    )
    stand_in.get_high_entropy_mask = GRPOTrainer.get_high_entropy_mask.__get__(stand_in)
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


def run_trl(
    settings: dict[str, Any],
    batch: Batch,
    stats: TokenStats,
    *,
    gmpo: bool = False,
    items: Tensor | None = None,
    stand_in: Any = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, gradient of log-probabilities, gradient of entropies) of TRL's `_compute_loss`.

    `items` are the tokens of the whole step; `stand_in` is a trainer to go on with, for what it keeps between steps.
    """
    stand_in = stand_in or trainer(**settings)
    inputs = inputs_of(batch, items=items)
    if stand_in.use_vllm:
        inputs["importance_sampling_ratio"] = score(settings, batch, torch.zeros(len(batch.response_mask)))[
            "importance_sampling_ratio"
        ]
    leaves = with_gradient(stats)
    stand_in._get_per_token_logps_and_entropies = lambda *a, **k: (leaves.logprobs, leaves.entropy, None)
    kind = GMPOTrainer if gmpo else GRPOTrainer
    loss = kind._compute_loss(stand_in, None, inputs)
    return loss.detach(), *derivatives(loss, leaves)


def score(settings: dict[str, Any], batch: Batch, rewards: Tensor) -> dict[str, Tensor]:
    """TRL's `_generate_and_score_completions` on given samples: advantages and, with vLLM, importance ratios."""
    stand_in = trainer(**settings | {"beta": 0.0})
    mask = batch.response_mask
    inputs = inputs_of(replace(batch, advantages=torch.zeros(len(mask))))
    length = mask.shape[1]
    tools = inputs["completion_mask"] * inputs["tool_mask"]
    logps = batch.rollout_logprobs
    assert logps is not None
    stand_in._generate = lambda prompts: (
        [[1, 1]] * len(mask),
        [[1] * length] * len(mask),
        tools.tolist(),
        ["x"] * len(mask),
        [[None if x != x else x for x in row] for row in logps.tolist()],
        {},
        None,
        [],
    )
    stand_in._get_per_token_logps_and_entropies = lambda *a, **k: (batch.old_logprobs, None, None)
    stand_in._calculate_rewards = lambda *a: rewards[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GRPOTrainer._generate_and_score_completions(stand_in, [{"prompt": "x"}] * len(mask))

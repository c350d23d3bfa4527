"""TRL's trainer without a model: its own `_compute_loss` and scoring code, called on a stand-in for `self`."""

import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from cases import with_gradient
from holdfast import Batch, TokenStats
from holdfast.check_loss.trl import dress, inputs_of
from oracles.draws import derivatives

with warnings.catch_warnings():
    # The test session turns warnings into errors; those of a peer's imports are not ours to fix.
    warnings.simplefilter("ignore")
    from trl import GRPOTrainer
    from trl.experimental.gmpo import GMPOTrainer


def trainer(**settings: Any) -> Any:
    """The stand-in, with TRL's names of settings; unknown names are refused."""
    stand_in = dress(SimpleNamespace(), settings)
    stand_in.get_off_policy_mask = GRPOTrainer.get_off_policy_mask
    stand_in.get_gamma_weights = GRPOTrainer.get_gamma_weights
    stand_in.get_high_entropy_mask = GRPOTrainer.get_high_entropy_mask.__get__(stand_in)
    return stand_in


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

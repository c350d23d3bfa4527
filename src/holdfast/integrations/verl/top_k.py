"""Level 3: the engine's top-K tokens against the student's full logits.

The rollout carries its K most probable tokens where verl carries a teacher's: fields `teacher_ids` and
`teacher_logprobs`, [tokens, K], row i for the token at i + 1. Before the loss verl hands us the logits of a packed
micro-batch and keeps what we return per token.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.core.divergences import top_k
from holdfast.errors import DataError
from holdfast.types import STATS_BOUNDS

CHUNK = 1024
"""Rows whose log-softmax exists at a time: a float32 copy of 1024 rows of a 150 k vocabulary is 0.6 GB."""


def top_k_bounds(student_logits: Float[Tensor, "1 N V"], data: Any) -> dict[str, Float[Tensor, "1 N"]]:
    """`kl_rollout_lower`, `tv_rollout_lower` and `tv_rollout_upper` of every packed token, without a gradient.

    Rows without a recorded distribution (prompt and tool tokens; all their log-probabilities are 0) get lower bounds 0
    and upper bound 1: nothing is known there. Raises DataError where the batch carries no top-K.
    """
    if "teacher_ids" not in data.keys() or "teacher_logprobs" not in data.keys():  # noqa: SIM118 (a TensorDict)
        raise DataError(
            "policy_loss.top_k = true, but the rollout returned no top-K: its output needs the extra fields "
            "teacher_ids and teacher_logprobs, [tokens, K]; set top_k = false, or see the third level in docs/verl.md"
        )
    ids, logprobs = data["teacher_ids"].values(), data["teacher_logprobs"].values()
    logits = student_logits[0]
    if len(ids) != len(logits):
        raise DataError(f"the rollout's top-K covers {len(ids)} tokens, the packed logits {len(logits)}: no padding")
    pieces = zip(logits.split(CHUNK), ids.split(CHUNK), logprobs.split(CHUNK), strict=True)
    with torch.no_grad():
        parts = [_bounds(*rows) for rows in pieces]
    return {name: torch.cat(column)[None] for name, column in zip(STATS_BOUNDS, zip(*parts, strict=True), strict=True)}


def _bounds(
    logits: Float[Tensor, "n V"], ids: Int[Tensor, "n K"], rollout: Float[Tensor, "n K"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    known = (rollout != 0).any(dim=-1)
    chosen = logits.gather(-1, ids).float() - logits.float().logsumexp(-1, keepdim=True)
    found = top_k(chosen, rollout)
    return (
        torch.where(known, found.kl_lower.value, 0),
        torch.where(known, found.tv_lower.value, 0),
        torch.where(known, found.tv_upper.value, 1),
    )

"""What TRL does not keep: every trained sequence with the log-probabilities of both policies, for the audit.

Pruned to less than 13 bytes a token: entropies and bounds to the 8 significant bits of bfloat16 (bounds rounded so that
they stay bounds), and no response text beside the text of every token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.integrations.turns import turn_ids
from holdfast.rollout.models import token_texts
from holdfast.types import LossOutput, Rollout, TokenStats


@dataclass(frozen=True)
class Trained:
    """One micro-batch as it was trained on: TRL's inputs, the current policy, and what the objective made of them."""

    inputs: Mapping[str, Any]
    stats: TokenStats
    output: LossOutput


FOLDER = "_rollouts"
"""In OUTPUT_DIR. `push_to_hub` leaves out what begins with "_": prompts and responses stay here."""


def new_run() -> str:
    """A name for a run that no other has, and that sorts by time."""
    return f"{datetime.now(UTC):%Y-%m-%d_%H-%M-%S}_{uuid4().hex[:6]}"


def records_file(output_dir: str | None, run: str, step: int, rank: int | None) -> Path:
    """Where a step's sequences go: a folder per run, so that a new run beside an old one is not read as one with it."""
    name = f"step_{step:04d}" + ("" if rank is None else f"_rank_{rank}")
    return Path(output_dir or ".") / FOLDER / run / f"{name}.parquet"


def rollouts_of(trained: Trained, args: Any, tokenizer: Any, eos_token_ids: list[int], step: int) -> Iterator[Rollout]:
    """One `Rollout` per sequence; those whose completion TRL masked as truncated were not scored and are left out."""
    inputs, stats, output = trained.inputs, trained.stats, trained.output
    table = {name: value.detach().cpu() for name, value in inputs.items() if isinstance(value, Tensor) and value.ndim}
    lengths = table["completion_mask"].sum(dim=-1).tolist()
    reasons = {name: rejected.cpu() for name, rejected in output.reasons.items()}
    tokens = table["completion_mask"].bool() & table.get("tool_mask", table["completion_mask"]).bool()
    logprobs, entropy = stats.logprobs.detach().cpu(), stats.entropy
    entropy = None if entropy is None else entropy.detach().cpu().bfloat16().float()
    kl_lower, tv_lower = (_down(stats.kl_rollout_lower), _down(stats.tv_rollout_lower))
    tv_upper = _up(stats.tv_rollout_upper)
    trust, turns = output.trust_mask.cpu(), turn_ids(tokens)
    for row, length in enumerate(lengths):
        if not length:
            continue

        def cut(values: Tensor | None, row: int = row, length: int = length) -> tuple[Any, ...] | None:
            return None if values is None else tuple(values[row, :length].tolist())

        ids = table["completion_ids"][row, :length].tolist()
        prompt = table["prompt_ids"][row][table["prompt_mask"][row].bool()].tolist()
        advantages = table["advantages"]
        counts = {name: int(rejected[row].sum()) for name, rejected in reasons.items()}
        yield Rollout(
            prompt_ids=tuple(prompt),
            response_ids=tuple(ids),
            rollout_logprobs=cut(table.get("sampling_per_token_logps")),
            trainer_logprobs=cut(logprobs),
            response_mask=cut(tokens),
            kl_lower=cut(kl_lower),
            tv_lower=cut(tv_lower),
            tv_upper=cut(tv_upper),
            entropy=cut(entropy),
            advantages=cut(advantages if advantages.ndim == 2 else advantages[:, None].expand(tokens.shape)),
            trust_mask=cut(trust),
            turn_ids=cut(turns),
            weight_versions=(int(table["weight_versions"][row]),) * length,
            reward=_finite(float(table["rewards"][row])),
            mask_reason=", ".join(f"{name} ({count} tokens)" for name, count in counts.items() if count) or None,
            finish_reason="stop" if ids[-1] in eos_token_ids else "length",
            step=step,
            sequence_id=int(table["sequence_ids"][row]),
            group_id=int(table["group_ids"][row]),
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            min_p=args.min_p,
            prompt_text=tokenizer.decode(prompt),
            token_texts=token_texts(tokenizer, ids),
            extra={"source": "trl"},
        )


def _down(bound: Float[Tensor, "B T"] | None) -> Float[Tensor, "B T"] | None:
    """Lower bounds, at least 0, cut to 8 significant bits: never larger than they were."""
    return None if bound is None else (_bits(bound) & -(1 << 16)).view(torch.float32)


def _up(bound: Float[Tensor, "B T"] | None) -> Float[Tensor, "B T"] | None:
    """Upper bounds from 0 to 1 with 8 significant bits: never smaller than they were, and never above 1."""
    return None if bound is None else ((_bits(bound) + 0xFFFF) & -(1 << 16)).view(torch.float32)


def _bits(values: Tensor) -> Tensor:
    return values.detach().cpu().float().contiguous().view(torch.int32)


def _finite(reward: float) -> float | None:
    return None if reward != reward else reward

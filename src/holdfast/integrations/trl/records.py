"""What TRL does not keep: every trained sequence with the log-probabilities of both policies, for the audit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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


def rollouts_of(trained: Trained, args: Any, tokenizer: Any, eos_token_ids: list[int], step: int) -> Iterator[Rollout]:
    """One `Rollout` per sequence; those whose completion TRL masked as truncated were not scored and are left out."""
    inputs, stats, output = trained.inputs, trained.stats, trained.output
    table = {name: value.detach().cpu() for name, value in inputs.items() if isinstance(value, Tensor) and value.ndim}
    lengths = table["completion_mask"].sum(dim=-1).tolist()
    reasons = {name: rejected.cpu() for name, rejected in output.reasons.items()}
    tokens = table["completion_mask"].bool() & table.get("tool_mask", table["completion_mask"]).bool()
    logprobs, entropy = stats.logprobs.detach().cpu(), stats.entropy
    entropy = None if entropy is None else entropy.detach().cpu()
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
            response_text=tokenizer.decode(ids, skip_special_tokens=True),
            token_texts=token_texts(tokenizer, ids),
            extra={"source": "trl"},
        )


def _finite(reward: float) -> float | None:
    return None if reward != reward else reward

"""What verl does not keep: every trained sequence with the log-probabilities of both policies, for the audit."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from holdfast.types import Batch, LossOutput, Rollout, TokenStats


def rollouts_of(
    data: Any, seen: Iterable[tuple[Tensor, Batch, TokenStats, LossOutput]], step: int
) -> Iterator[Rollout]:
    """One `Rollout` per sequence of this rank's update, as it was trained on; verl's padding rows are left out.

    `trainer_logprobs` are the current policy's, in the forward pass that the gradient came from.
    """
    prompts, responses = data["prompts"].unbind(), data["responses"].unbind()
    rewards = data["rm_scores"].unbind() if "rm_scores" in data.keys() else None  # noqa: SIM118 (a TensorDict)
    groups = list(data["uid"]) if "uid" in data.keys() else None  # noqa: SIM118
    for rows, batch, stats, out in seen:
        for place, row in enumerate(rows.tolist()):
            if not bool(batch.response_mask[place].any()):
                continue
            length = len(responses[row])

            def cut(values: Tensor | None, place: int = place, length: int = length) -> tuple[Any, ...] | None:
                return None if values is None else tuple(values[place, :length].tolist())

            yield Rollout(
                prompt_ids=tuple(prompts[row].tolist()),
                response_ids=tuple(responses[row].tolist()),
                rollout_logprobs=cut(batch.rollout_logprobs),
                trainer_logprobs=cut(stats.logprobs),
                response_mask=cut(batch.response_mask),
                kl_lower=cut(stats.kl_rollout_lower),
                tv_lower=cut(stats.tv_rollout_lower),
                tv_upper=cut(stats.tv_rollout_upper),
                entropy=cut(stats.entropy),
                advantages=cut(batch.advantages),
                trust_mask=cut(out.trust_mask),
                turn_ids=cut(batch.turn_ids),
                reward=None if rewards is None else float(rewards[row].sum()),
                mask_reason=_reason(out, place),
                step=step,
                sequence_id=None if batch.sequence_ids is None else int(batch.sequence_ids[place]),
                group_id=None if groups is None else zlib.crc32(str(groups[row]).encode()),
                extra={"source": "verl"},
            )


def _reason(out: LossOutput, place: int) -> str | None:
    counts = {name: int(rejected[place].sum()) for name, rejected in out.reasons.items()}
    return ", ".join(f"{name} ({count} tokens)" for name, count in counts.items() if count) or None

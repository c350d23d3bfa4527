"""What is written of every sequence: tokens, both policies' log-probabilities, verdict and reason."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

import torch

from holdfast.rollout.models import token_texts
from holdfast.train.brake.brake import Taken
from holdfast.train.sampling.data import Rollouts
from holdfast.train.sampling.episodes import Episode
from holdfast.train.settings.config import RunConfig
from holdfast.train.update import Updated
from holdfast.types import Rollout, TokenStats


def step_records(config: RunConfig, tokenizer: Any, taken: Taken, step: int) -> Iterator[Rollout]:
    """One `Rollout` per sequence of the step, in sampling order, those held out of its update among them.

    These have no advantages and no verdicts: the objective never saw them.
    """
    parts = [rollout_records(config, tokenizer, taken.trained, taken.updated.stats, taken.updated, step)]
    if taken.held is not None and taken.before is not None:
        parts.append(rollout_records(config, tokenizer, taken.held, taken.before, None, step))
    return heapq.merge(*parts, key=lambda record: record.sequence_id or 0)


def rollout_records(
    config: RunConfig, tokenizer: Any, rollouts: Rollouts, stats: TokenStats, updated: Updated | None, step: int
) -> Iterator[Rollout]:
    """One `Rollout` per sequence; `stats` is the trainer's view before the update."""
    sampling = config.sampling
    for row, episode in enumerate(rollouts.episodes):
        ids, count = episode.token_ids, len(episode.token_ids)

        def numbers(values: Any, row: int = row, count: int = count) -> tuple[Any, ...] | None:
            return None if values is None else tuple(values[row, :count].tolist())

        problem = rollouts.prompts.problems[row]
        yield Rollout(
            prompt_ids=rollouts.prompts.token_ids[row],
            response_ids=ids,
            rollout_logprobs=numbers(rollouts.rollout_logprobs),
            trainer_logprobs=numbers(stats.logprobs),
            response_mask=numbers(rollouts.sequences.response_mask),
            kl_exact=numbers(stats.kl_rollout),
            kl_lower=numbers(stats.kl_rollout_lower),
            tv_lower=numbers(stats.tv_rollout_lower),
            tv_upper=numbers(stats.tv_rollout_upper),
            entropy=numbers(stats.entropy),
            advantages=numbers(None if updated is None else updated.advantages),
            trust_mask=numbers(None if updated is None else updated.trust_mask),
            turn_ids=episode.turn_ids,
            weight_versions=episode.versions,
            experts_changed=numbers(rollouts.experts_changed),
            support_size=support_sizes(episode, sampling.truncates),
            reward=float(rollouts.rewards[row]),
            mask_reason=None if updated is None else mask_reason(updated, row),
            finish_reason=episode.finish_reason,
            step=step,
            sequence_id=int(rollouts.sequence_ids[row]),
            group_id=int(rollouts.group_ids[row]),
            environment=problem.environment,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            prompt_text=problem.prompt,
            response_text=rollouts.texts[row],
            token_texts=token_texts(tokenizer, ids),
            extra={"answer": problem.answer} | ({"held_out": True} if updated is None else {}),
        )


def support_sizes(episode: Episode, truncated: bool) -> tuple[int, ...] | None:
    """Of how many tokens each was drawn, 0: of all, or not drawn by the policy; None where the engine does not tell."""
    if not truncated:
        return (0,) * len(episode.token_ids)
    if episode.distributions is not None:
        found = (episode.distributions > -torch.inf).sum(dim=1)
        found = found.where(found < episode.distributions.shape[1], 0)
    elif episode.support_sizes is not None:
        found = episode.support_sizes
    elif episode.top_logprobs is not None and bool((episode.top_logprobs[:, -1] == -torch.inf).all()):
        found = (episode.top_logprobs > -torch.inf).sum(dim=1)
    else:
        return None
    numbers = iter(found.tolist())
    return tuple(next(numbers) if own else 0 for own in episode.sampled)


def mask_reason(updated: Updated, row: int) -> str | None:
    """Which parts of the objective rejected tokens of this sequence, and how many; None where it was accepted."""
    counts = {name: int(rejected[row].sum()) for name, rejected in updated.reasons.items()}
    parts = [f"{name} ({count} tokens)" for name, count in counts.items() if count]
    return ", ".join(parts) or None

"""Prompts and rollouts: problems become token ids, completions become tensors, responses become rewards."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.errors import ConfigError, DataError
from holdfast.rollout.engine import Completion
from holdfast.tasks.base import Problem, Task
from holdfast.train.forward import Sequences

Reward = Callable[[Problem, str], float]


@dataclass(frozen=True)
class Prompts:
    """Problems with their token ids, in the same order."""

    problems: tuple[Problem, ...]
    token_ids: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.problems)

    def repeat(self, times: int) -> Prompts:
        """Each problem `times` times in a row: the groups of a step."""
        return Prompts(
            tuple(problem for problem in self.problems for _ in range(times)),
            tuple(ids for ids in self.token_ids for _ in range(times)),
        )


@dataclass(frozen=True)
class Rollouts:
    """One step's sampled responses with everything known before the trainer looks at them.

    `rewards`, `group_ids` and `sequence_ids` are [B]; `rollout_logprobs` [B, T], zero outside the response.
    """

    prompts: Prompts
    completions: tuple[Completion, ...]
    texts: tuple[str, ...]
    sequences: Sequences
    rollout_logprobs: Float[Tensor, "B T"]
    rewards: Float[Tensor, " B"]
    group_ids: Int[Tensor, " B"]
    sequence_ids: Int[Tensor, " B"]

    @property
    def tokens(self) -> int:
        """Sampled response tokens."""
        return int(self.sequences.response_mask.sum())


class PromptSource:
    """Draws problems of a task by seed and turns them into token ids that leave room for the response."""

    def __init__(self, task: Task, tokenizer: Any, *, max_tokens: int, chat: bool) -> None:
        self.task = task
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.chat = chat

    def draw(self, seed: int, count: int, split: str) -> Prompts:
        """`count` problems whose prompts fit; longer ones are replaced by further draws.

        Raises:
            DataError: no prompt fits.
        """
        kept: list[tuple[Problem, tuple[int, ...]]] = []
        shortest = None
        for attempt in range(8):
            for problem in self.task.problems(seed + attempt * 104_729, count, split):
                ids = self.encode(problem.prompt)
                shortest = len(ids) if shortest is None else min(shortest, len(ids))
                if len(ids) <= self.max_tokens:
                    kept.append((problem, ids))
            if len(kept) >= count:
                break
        if not kept:
            raise DataError(
                f"no prompt of task {self.task.name!r} fits: the shortest has {shortest} tokens, at most "
                f"{self.max_tokens} are allowed; raise batch.max_prompt_tokens, lower sampling.max_tokens or take a "
                "model with a longer context"
            )
        chosen = [kept[i % len(kept)] for i in range(count)]
        return Prompts(tuple(problem for problem, _ in chosen), tuple(ids for _, ids in chosen))

    def encode(self, prompt: str) -> tuple[int, ...]:
        """Token ids of a prompt, with what the tokenizer puts in front."""
        if self.chat:
            message = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
            return tuple(self.tokenizer.encode(text, add_special_tokens=False))
        ids = self.tokenizer.encode(prompt)
        return tuple(ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids)

    def encode_response(self, text: str) -> tuple[int, ...]:
        """Token ids of a solution, closed by the end-of-sequence token."""
        return (*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a response."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


def load_reward(task: Task, name: str | None) -> Reward:
    """The task's own reward, or a function named `module:function`.

    Raises:
        ConfigError: the name cannot be imported.
    """
    if name is None:
        return task.reward
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"task.reward = {name!r} cannot be imported ({error}); write package.module:function and start holdfast "
            "where the module can be found"
        ) from None


def score(reward: Reward, problem: Problem, text: str) -> float:
    """One response's reward.

    Raises:
        DataError: the function raises, or its value is not a finite number.
    """
    try:
        value = float(reward(problem, text))
    except Exception as error:
        raise DataError(
            f"the reward function raised {type(error).__name__}: {error}; prompt {problem.prompt!r}, "
            f"response {_short(text)!r}; make it return a number for every response"
        ) from error
    if not math.isfinite(value):
        raise DataError(
            f"the reward function returned {value} for prompt {problem.prompt!r}, response {_short(text)!r}; "
            "rewards must be finite, usually between 0 and 1"
        )
    return value


def assemble(
    source: PromptSource, prompts: Prompts, completions: Sequence[Completion], reward: Reward, first_id: int, group: int
) -> Rollouts:
    """Tensors, texts and rewards of one step's completions."""
    responses = [completion.token_ids for completion in completions]
    texts = tuple(source.decode(ids) for ids in responses)
    rewards = [score(reward, problem, text) for problem, text in zip(prompts.problems, texts, strict=True)]
    full = [completion.distributions for completion in completions]
    sequences = pack(prompts.token_ids, responses, source.tokenizer.pad_token_id)
    known = [d for d in full if d is not None]
    if len(known) == len(full):
        sequences = Sequences(sequences.input_ids, sequences.prompt_lengths, sequences.response_mask, tuple(known))
    logprobs = torch.zeros(sequences.response_mask.shape)
    logprobs[sequences.response_mask] = torch.cat([completion.logprobs.float() for completion in completions])
    count = len(prompts)
    return Rollouts(
        prompts=prompts,
        completions=tuple(completions),
        texts=texts,
        sequences=sequences,
        rollout_logprobs=logprobs,
        rewards=torch.tensor(rewards, dtype=torch.float32),
        group_ids=torch.arange(count) // group,
        sequence_ids=torch.arange(first_id, first_id + count),
    )


def pack(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad: int) -> Sequences:
    """Right-padded token ids and the response mask."""
    longest = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    rows = [[*p, *r, *[pad] * (longest - len(p) - len(r))] for p, r in zip(prompts, responses, strict=True)]
    lengths = torch.tensor([len(r) for r in responses])
    width = max(1, int(lengths.max()))
    return Sequences(
        input_ids=torch.tensor(rows, dtype=torch.long),
        prompt_lengths=torch.tensor([len(p) for p in prompts]),
        response_mask=torch.arange(width).unsqueeze(0) < lengths.unsqueeze(1),
    )


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"

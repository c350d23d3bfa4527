"""The supervised phase: correct solutions teach the format, a sloppy teacher then spoils the sampled accuracy.

The result is a model that knows the algorithm (greedy decoding is right) but samples wrong steps: what
reinforcement learning can repair, in minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch

from holdfast.errors import ConfigError
from holdfast.tasks.base import Problem, Task
from holdfast.train.policy.forward import Policy, micro_batches
from holdfast.train.sampling.data import PromptSource, pack
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.seeds import derive_seed

Progress = Callable[[int, int, float], None]


def warm_start(policy: Policy, source: PromptSource, config: RunConfig, progress: Progress) -> None:
    """Train in place: `clean_steps` updates on clean solutions, then `sloppy_steps` on sloppy ones.

    The loss is the mean negative log-likelihood of the response tokens; AdamW, linear warm-up over the first
    twentieth, then cosine decay to a tenth, separately in each phase.
    """
    settings = config.warm_start
    phases = [(settings.clean_steps, settings.learning_rate, 0.0)]
    phases.append((settings.sloppy_steps, settings.sloppy_learning_rate, settings.error_rate))
    done, total = 0, settings.clean_steps + settings.sloppy_steps
    for phase, (steps, rate, error_rate) in enumerate(phases):
        optimizer = torch.optim.AdamW(
            policy.model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * _schedule(step, steps)
            loss = _update(policy, source, config, optimizer, derive_seed(config.seed, "warm", phase, step), error_rate)
            done += 1
            progress(done, total, loss)


def has_warm_start(config: RunConfig) -> bool:
    """Whether the configuration asks for a supervised phase."""
    return config.warm_start.clean_steps + config.warm_start.sloppy_steps > 0


def cached_warm_start(root: Path, config: RunConfig) -> Path:
    """The folder in which the warm-started model of this configuration is kept."""
    return root / config.warm_start_key()


def _schedule(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _update(
    policy: Policy,
    source: PromptSource,
    config: RunConfig,
    optimizer: torch.optim.Optimizer,
    seed: int,
    error_rate: float,
) -> float:
    prompts = source.draw(seed, config.warm_start.batch_size, "train")
    responses = [
        source.encode_solution(problem, _solution(source.task, problem, derive_seed(seed, index), error_rate))
        for index, problem in enumerate(prompts.problems)
    ]
    ids, sampled = zip(*responses, strict=True)
    sequences = pack(prompts.token_ids, ids, source.tokenizer.pad_token_id, sampled)
    tokens = sequences.response_mask.sum()
    loss = 0.0
    for rows in micro_batches(sequences, torch.arange(len(prompts)), config.batch.micro_batch_tokens):
        share = -policy.stats(sequences.select(rows)).logprobs.sum() / tokens
        share.backward()
        loss += float(share.detach())
    torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def _solution(task: Task, problem: Problem, seed: int, error_rate: float) -> str:
    if error_rate:
        return task.sloppy(problem, seed, error_rate)
    if problem.solution is None:
        raise ConfigError(
            f"task {task.name!r} has no solution for prompt {problem.prompt!r}, which a warm start needs: add one to "
            "every problem or set warm_start.clean_steps = 0"
        )
    return problem.solution

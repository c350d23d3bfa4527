"""Rewards on held-out problems: by the trainer's own model, or by the run's engine where that is a program outside."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from holdfast.rollout.engine import Sampling
from holdfast.tasks.held_out import held_out_warnings
from holdfast.tasks.pass_at_k import mean_pass_at_k, powers_of_two
from holdfast.tasks.verify import Score, mean_parts
from holdfast.train.sampling.data import Prompts
from holdfast.train.sampling.sampler import new_episodes, sampling_of
from holdfast.train.settings.seeds import derive_seed
from holdfast.train.setup import Run


def evaluate(run: Run) -> dict[str, Any]:
    """Rewards of sampled responses (and a greedy one) to each held-out problem, under the names of metrics.jsonl.

    The problems are the same at every step and `eval_rewards` is in their order, so that two steps can be compared
    problem by problem; with several samples a problem's is their mean. Accuracies are there only where every reward is
    0 or 1: they are then the mean rewards. pass@k follows from several samples where rewards lie in [0, 1]: right is a
    response that earns 1, so that partial credit does not count.
    """
    if run.judge.policy_version != run.step:
        run.judge.sync(run.engine_view, run.step)
    sampling = sampling_of(run.config)
    scores = {"eval": _scores(run, sampling, run.config.evaluation.samples)}
    if run.config.evaluation.greedy:
        scores["eval_greedy"] = _scores(run, replace(sampling, temperature=0.0))
    samples = run.config.evaluation.samples
    values = [score.value for score in scores["eval"]]
    groups = [values[first : first + samples] for first in range(0, len(values), samples)]
    rewards = [statistics.fmean(group) for group in groups]
    record: dict[str, Any] = {f"{name}_reward": _mean(of) for name, of in scores.items()}
    record |= mean_parts(scores["eval"], "eval_reward")
    record["eval_rewards"] = rewards
    if len(rewards) > 1:
        record["eval_reward_se"] = statistics.stdev(rewards) / math.sqrt(len(rewards))
    if all(score.value in (0.0, 1.0) for of in scores.values() for score in of):
        record |= {f"{name}_accuracy": _mean(of) for name, of in scores.items()}
    if all(0.0 <= value <= 1.0 for value in values):
        right = [sum(value == 1.0 for value in group) for group in groups]
        record |= {f"eval_pass_at_{k}": mean_pass_at_k(right, samples, k) for k in powers_of_two(samples)}
    if failed := sum(score.error is not None for of in scores.values() for score in of):
        record["eval_reward_errors"] = failed
    return record


def held_out_doubts(run: Run, most: int = 4096) -> list[str]:
    """What a reader of the evaluations should know of their problems: that they repeat, or are trained on.

    A task without a table is asked for the training problems of the first steps, `most` of them at most.
    """
    config, source = run.config, run.source
    steps = range(1, min(config.steps, -(-most // config.batch.prompts)) + 1)
    training = (
        problem
        for step in steps
        for problem in source.task.problems(derive_seed(config.seed, "train", step), config.batch.prompts, "train")
    )
    return held_out_warnings(source.task, _held_out(run).problems, training)


def _held_out(run: Run) -> Prompts:
    return run.source.draw(derive_seed(run.config.seed, "evaluate"), run.config.evaluation.problems, "eval")


def _scores(run: Run, sampling: Sampling, samples: int = 1) -> list[Score]:
    """Of `samples` responses to each problem, those to the same one after the other."""
    prompts, seed = _held_out(run).repeat(samples), derive_seed(run.config.seed, "evaluate")
    writing = replace(run.writing, sampling=sampling, distributions=False, top=0, support=False)
    drawn = derive_seed(seed, run.step)
    episodes = writing.advance(
        run.judge,
        new_episodes(prompts, 0),
        budget=sampling.max_tokens,
        seed=lambda call: derive_seed(drawn, call) if call else drawn,
    )
    texts = [run.source.decode(episode.sampled_ids) for episode in episodes]
    return run.scorer(prompts.problems, texts)


def _mean(scores: Sequence[Score]) -> float:
    return statistics.fmean(score.value for score in scores)

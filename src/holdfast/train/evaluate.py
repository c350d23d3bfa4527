"""Accuracy on held-out problems, by the trainer's own numerics: neither quantised nor behind."""

from __future__ import annotations

from dataclasses import replace

from holdfast.rollout.engine import Sampling
from holdfast.train.data import score
from holdfast.train.seeds import derive_seed
from holdfast.train.setup import Run, sampling_of


def evaluate(run: Run) -> dict[str, float]:
    """Mean reward of one sampled (and one greedy) response to each held-out problem."""
    run.judge.sync(run.policy.model, run.step)
    sampling = sampling_of(run.config)
    record = {"eval_accuracy": _accuracy(run, sampling)}
    if run.config.evaluation.greedy:
        record["eval_greedy_accuracy"] = _accuracy(run, replace(sampling, temperature=0.0))
    return record


def _accuracy(run: Run, sampling: Sampling) -> float:
    count, seed = run.config.evaluation.problems, derive_seed(run.config.seed, "evaluate")
    prompts = run.source.draw(seed, count, "eval")
    completions = run.judge.generate(
        prompts.token_ids, sampling, seed=derive_seed(seed, run.step), sequence_ids=range(count)
    )
    texts = [run.source.decode(completion.token_ids) for completion in completions]
    rewards = [score(run.reward, problem, text) for problem, text in zip(prompts.problems, texts, strict=True)]
    return sum(reward >= 1.0 for reward in rewards) / count

"""Accuracy on held-out problems, by the trainer's own numerics: neither quantised nor behind."""

from __future__ import annotations

from dataclasses import replace

from holdfast.rollout.engine import Sampling
from holdfast.train.sampling.sampler import new_episodes, sampling_of
from holdfast.train.settings.seeds import derive_seed
from holdfast.train.setup import Run


def evaluate(run: Run) -> dict[str, float]:
    """Mean reward of one sampled (and one greedy) response to each held-out problem."""
    run.judge.sync(run.engine_view, run.step)
    sampling = sampling_of(run.config)
    record = {"eval_accuracy": _accuracy(run, sampling)}
    if run.config.evaluation.greedy:
        record["eval_greedy_accuracy"] = _accuracy(run, replace(sampling, temperature=0.0))
    return record


def _accuracy(run: Run, sampling: Sampling) -> float:
    count, seed = run.config.evaluation.problems, derive_seed(run.config.seed, "evaluate")
    prompts = run.source.draw(seed, count, "eval")
    writing = replace(run.writing, sampling=sampling, distributions=False, top=0)
    drawn = derive_seed(seed, run.step)
    episodes = writing.advance(
        run.judge,
        new_episodes(prompts, 0),
        budget=sampling.max_tokens,
        seed=lambda call: derive_seed(drawn, call) if call else drawn,
    )
    texts = [run.source.decode(episode.sampled_ids) for episode in episodes]
    return sum(score.value >= 1.0 for score in run.scorer(prompts.problems, texts)) / count

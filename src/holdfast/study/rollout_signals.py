"""What the logged rollouts of a run say step by step, in the audit's own numbers: tails, extreme tokens, skew."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from holdfast.audit.measure.extremes import RATES, SIGNS
from holdfast.audit.measure.statistics.tails import Largest, pareto_k
from holdfast.audit.measure.tokens import LOG_RATIO_LIMIT
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Chunk
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.source import find_files, read_files

ROLLOUTS = "rollouts"
"""The folder of a run that holds its logged rollouts."""
KEYS = ("signed_skew", "pareto_k", "beyond_20", "confident_disagreement", "effective_share")


def rollout_signals(run: Path) -> dict[int, dict[str, float]]:
    """The numbers of `step_signals` by step; empty where the run logged no rollouts."""
    folder = run / ROLLOUTS
    if not folder.is_dir():
        return {}
    by_step: dict[int, list[Chunk]] = {}
    for _, chunk in read_files(find_files(folder), Reading()):
        by_step.setdefault(int(View(chunk).step[0]), []).append(chunk)
    return {step: step_signals(chunks) for step, chunks in sorted(by_step.items())}


def step_signals(chunks: Iterable[Chunk]) -> dict[str, float]:
    """What the audit's checks `signed_skew` and `heavy_tails` measure, of one step; what cannot be told is left out.

    w = p(trainer) / p(engine) of each token. `signed_skew`: the larger of |Σ (w - 1) A| / Σ |A| for A of either sign.
    `pareto_k`: of the largest w. `beyond_20`: share of tokens whose two probabilities differ by more than that factor;
    `confident_disagreement`: share that the engine gave one half or more and the trainer 2 nats less.
    `effective_share`: (Σ w)² / (n Σ w²).
    """
    found: dict[str, float] = {}
    views = [view for view in map(View, chunks) if view.has("rollout_logprobs", "trainer_logprobs")]
    views = [view for view in views if view.measured.any()]
    if not views:
        return found
    rates = np.sum([view.extremes.sum(axis=0) for view in views], axis=0)
    for key, name in (("beyond_20", "beyond 20"), ("confident_disagreement", "confident disagreement")):
        found[key] = float(rates[RATES.index(name)] / rates[-1])
    ratios = np.concatenate([view.log_ratio[view.measured].astype(np.float64) for view in views])
    weights = np.exp(np.minimum(ratios, LOG_RATIO_LIMIT))
    found["effective_share"] = float(weights.sum() ** 2 / (len(weights) * np.square(weights).sum()))
    largest = Largest()
    largest.add(ratios)
    if (k := pareto_k(largest)) is not None:
        found["pareto_k"] = k.value
    if signed := [view.pulls.sum(axis=0) for view in views if view.has("advantages")]:
        pulls = np.sum(signed, axis=0)
        sizes = [(pulls[2 * i], pulls[4 + i]) for i in range(len(SIGNS)) if pulls[4 + i] > 0]
        found |= {"signed_skew": float(max(abs(pull) / size for pull, size in sizes))} if sizes else {}
    return found

"""Faults that show in where drift lies, along responses and over steps, and in what becomes of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from holdfast.audit.read.columns import Column
from holdfast.audit.simulate.fault import Fault
from holdfast.audit.simulate.training_faults import QUIET, flat, noisier_trainer
from holdfast.types import Rollout

FADE = 16
TOOTH = 12
"""Steps between two restarts."""


def _fading(rollout: Rollout) -> Column:
    return np.exp(-np.arange(len(rollout.response_ids)) / FADE)


def _teeth(rollout: Rollout) -> Column:
    return np.full(len(rollout.response_ids), ((rollout.step or 1) - 1) % TOOTH / (TOOTH - 1))


def old_weights_again(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """Rollouts of the last `strength` steps carry the first step's weight version."""
    last = max(r.step or 1 for r in rollouts)
    return [
        replace(r, weight_versions=(0,) * len(r.response_ids)) if (r.step or 1) > last - strength else r
        for r in rollouts
    ]


def default_reward(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """Most answers are wrong and get -1, those that give up get 0; their share rises from .1 to `strength`."""
    last = max(r.step or 1 for r in rollouts)

    def change(r: Rollout) -> Rollout:
        share = 0.1 + (strength - 0.1) * ((r.step or 1) - 1) / max(1, last - 1)
        if rng.random() >= share:
            return replace(r, reward=1.0 if r.reward and rng.random() < 0.2 else -1.0)
        n = int(rng.integers(4, 16))
        tokens = {
            name: tuple(getattr(r, name)[:n])
            for name in ("response_ids", "rollout_logprobs", "trainer_logprobs", "response_mask", "entropy")
        }
        more = dict.fromkeys(("kl_exact", "advantages", "trust_mask", "turn_ids", "weight_versions"))
        return replace(r, reward=0.0, **tokens, **more)

    return [change(r) for r in rollouts]


COURSE_FAULTS = (
    Fault(
        "fading",
        "drift_at_start",
        "noise of {strength:g} on the trainer's logits at a response's start, which fades over 16 tokens",
        (0.06, 0.1, 0.3),
        noisier_trainer(flat(_fading)),
        run=QUIET,
    ),
    Fault(
        "saw_tooth",
        "drift_with_step",
        "noise on the trainer's logits that grows to {strength:g} over 12 steps, falls back, and grows again",
        (0.06, 0.1, 0.3),
        noisier_trainer(flat(_teeth)),
        run={**QUIET, "steps": 24, "age": 0},
    ),
    Fault(
        "old_weights_again",
        "versions_go_back",
        "the rollouts of the last {strength:g} of eight steps are of the first weights",
        (1.0, 2.0, 4.0),
        old_weights_again,
        run={"age": 0},
    ),
    Fault(
        "default_reward",
        "short_paid",
        "giving up pays 0 and being wrong -1: its share rises from 10 % to {strength:.0%}",
        (0.3, 0.5, 0.9),
        default_reward,
    ),
)

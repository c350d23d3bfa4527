"""The brake: prompts held out of an update judge it, and a step that they prove harmful is not taken.

Between the last optimiser step and the engine's new weights. The updated policy answers the held-out prompts anew, and
its rewards are compared with those of the step's own rollouts: docs/guard.md, docs/theory/certificates.md [21].
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.core.betting import EProcess
from holdfast.core.improvement import clipped_value
from holdfast.errors import DataError, HoldfastError
from holdfast.objectives.objective import Objective
from holdfast.tasks.verify import rewards_of
from holdfast.train.keep.stopwatch import Stopwatch
from holdfast.train.policy.forward import stats_of
from holdfast.train.sampling.data import Rollouts
from holdfast.train.sampling.sampler import new_episodes
from holdfast.train.settings.seeds import derive_seed
from holdfast.train.setup import Run
from holdfast.train.update import Updated, Updater
from holdfast.types import TokenStats

CAP = 10.0
"""Largest importance weight of a held-out response, fixed beforehand as it must be."""

ROUNDING = 1e-6
"""Relative: rewards are kept in float32."""


@dataclass(frozen=True)
class Verdict:
    """What the held-out prompts say of one update.

    `e_value` is the highest that the test of "it does no harm" reached, `harm` the lower limit of what the mean reward
    loses, `reward` the mean of the updated policy's own answers. All None where its weights are not finite, which
    needs no test.
    """

    braked: bool
    prompts: int
    e_value: float | None = None
    harm: float | None = None
    reward: float | None = None


@dataclass(frozen=True)
class Taken:
    """One step: the rollouts that were trained on, what the update saw of them, and the brake's part.

    `held` are the rollouts held out, `before` the policy on them before the update; `in_a_row` counts the steps up to
    this one that were not taken.
    """

    trained: Rollouts
    updated: Updated
    held: Rollouts | None = None
    before: TokenStats | None = None
    verdict: Verdict | None = None
    in_a_row: int = 0


class Brake:
    """Judges every step of a run; `in_a_row` counts the last steps that were not taken."""

    def __init__(self, run: Run) -> None:
        self.run, self.config, self.updater = run, run.config, run.updater
        last = next(reversed(run.folder.read_metrics()), {})
        self.in_a_row: int = last.get("braked_in_a_row", 0)

    def step(self, rollouts: Rollouts, step: int, clock: Stopwatch) -> Taken:
        """All optimiser steps on the rollouts that are not held out, undone where those that are prove harm.

        Raises:
            DataError: a reward outside `guard.brake_rewards`; the weights are what they were.
        """
        self._check(rollouts.rewards.tolist(), step)
        trained, held = self.split(rollouts, step)
        with clock.measure("brake"):
            rows = torch.arange(len(held.prompts))
            before = stats_of(self.run.policy, held.sequences, rows, self.config.batch.micro_batch_tokens)
            kept = Snapshot.of(self.updater)
        updated = self.updater.step(trained, step, clock)
        with clock.measure("brake"):
            try:
                verdict = self.judge(held, before, step)
            except HoldfastError:
                kept.put_back(self.updater)
                raise
            if verdict.braked:
                kept.put_back(self.updater)
                self.run.judge.sync(self.run.engine_view, step)
        self.in_a_row = self.in_a_row + 1 if verdict.braked else 0
        return Taken(trained, updated, held, before, verdict, self.in_a_row)

    def split(self, rollouts: Rollouts, step: int) -> tuple[Rollouts, Rollouts]:
        """To train on, and held out: whole groups, chosen by seed and step alone.

        Two groups may have drawn the same prompt, and are independent draws all the same.
        """
        groups, number = rollouts.group_ids.unique(return_inverse=True)
        generator = torch.Generator().manual_seed(derive_seed(self.config.seed, "brake", step))
        out = torch.isin(number, torch.randperm(len(groups), generator=generator)[: self.config.held_out])
        return rollouts.select((~out).nonzero()[:, 0]), rollouts.select(out.nonzero()[:, 0])

    def judge(self, held: Rollouts, before: TokenStats, step: int) -> Verdict:
        """The test of the weights as they are now, by answers of theirs to the held-out prompts."""
        _, prompts = held.group_ids.unique(return_inverse=True)
        sizes = prompts.bincount().double()
        if not all(bool(p.isfinite().all()) for p in self.updater.parameters):
            return Verdict(True, len(sizes))
        rewards = self._answers(held, step)
        self._check(rewards, step)
        low, high = self.config.guard.brake_rewards
        found = (held.rewards, torch.tensor(rewards))
        was, now = (((values.double() - low) / (high - low)).clamp(0, 1) for values in found)
        harm = clipped_value(self._log_ratio(held, before), was, CAP) - now
        units = torch.zeros_like(sizes).index_add_(0, prompts, harm) / sizes
        test = EProcess(self.config.guard.brake_level).update(units)
        limit, mean = test.lower() * (high - low), statistics.fmean(rewards)
        return Verdict(test.certified, len(sizes), test.highest, limit, mean)

    def _answers(self, held: Rollouts, step: int) -> list[float]:
        """Rewards of one new response of the updated policy to each held-out one, in their order."""
        run, drawn = self.run, derive_seed(self.config.seed, "brake answers", step)
        run.judge.sync(run.engine_view, step)
        episodes = replace(run.writing, distributions=False, top=0, support=False).advance(
            run.judge,
            new_episodes(held.prompts, 0),
            budget=run.writing.sampling.max_tokens,
            seed=lambda call: derive_seed(drawn, call) if call else drawn,
        )
        texts, problems = [run.source.decode(episode.sampled_ids) for episode in episodes], held.prompts.problems
        return rewards_of(run.scorer(problems, texts), problems, texts)

    def _log_ratio(self, held: Rollouts, before: TokenStats) -> Float[Tensor, "B T"]:
        """log θ'/p, θ' the policy before the update; 0 where p's engine also answers afresh, so that θ' is p."""
        if self.config.engine.kind != "embedded" and not self.config.asynchronous.staleness:
            return torch.zeros_like(held.rollout_logprobs)
        found = before.logprobs.double() - held.rollout_logprobs.double()
        return torch.where(held.sequences.response_mask, found, 0.0)

    def _check(self, rewards: Sequence[float], step: int) -> None:
        low, high = self.config.guard.brake_rewards
        room = ROUNDING * max(abs(low), abs(high))
        if outside := [reward for reward in rewards if not low - room <= reward <= high + room]:
            raise DataError(
                f"step {step}: a reward of {outside[0]:g} lies outside guard.brake_rewards = {[low, high]}, in which "
                "the brake's proof takes every reward to lie: set it to the lowest and highest that there can be, or "
                'guard.brake = "off"'
            )


@dataclass(frozen=True)
class Snapshot:
    """What an update changes: trained weights, the optimiser's state, the objective's own (a target's coefficient)."""

    weights: tuple[Tensor, ...]
    optimizer: Mapping[Any, Mapping[str, Any]]
    objective: Objective

    @staticmethod
    def of(updater: Updater) -> Snapshot:
        """A copy; it takes as much memory as the trained weights and the optimiser's state."""
        state = {
            parameter: {name: v.clone() if isinstance(v, Tensor) else v for name, v in values.items()}
            for parameter, values in updater.optimizer.state.items()
        }
        return Snapshot(tuple(p.detach().clone() for p in updater.parameters), state, updater.objective)

    @torch.no_grad()
    def put_back(self, updater: Updater) -> None:
        """Bit for bit; the gradients are zero, as after any update."""
        for parameter, kept in zip(updater.parameters, self.weights, strict=True):
            parameter.copy_(kept)
        state = updater.optimizer.state
        for parameter in [parameter for parameter in state if parameter not in self.optimizer]:
            del state[parameter]
        for parameter, values in self.optimizer.items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    state[parameter][name].copy_(value)
                else:
                    state[parameter][name] = value
        updater.objective, updater.moved = self.objective, False


def brake_metrics(verdict: Verdict, in_a_row: int) -> dict[str, int | float]:
    """For the step's line: whether it was braked (1 or 0), and what that rests on, as far as there are numbers."""
    numbers = {"brake_e": verdict.e_value, "brake_harm": verdict.harm, "brake_reward": verdict.reward}
    known = {name: value for name, value in numbers.items() if value is not None}
    counts = {"braked": int(verdict.braked), "braked_in_a_row": in_a_row, "brake_prompts": verdict.prompts}
    return counts | known


def brake_warnings(verdict: Verdict) -> list[str]:
    """What a person should know: that a step was not taken, and why."""
    if not verdict.braked:
        return []
    if verdict.harm is None:
        return ["brake: the step was not taken: it leaves weights that are not finite"]
    return [
        f"brake: the step was not taken: {verdict.prompts} held-out prompts prove that it lowers the mean reward, by "
        f"at least {verdict.harm:.3g} (e-value {verdict.e_value:.3g})"
    ]

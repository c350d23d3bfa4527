"""guard.brake = "certificate": a step that the updated policy's own new answers prove harmful is not taken.

Rewards of these answers to the held-out prompts are compared with those of the step's own rollouts:
docs/theory/certificates.md [21].
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.core.betting import EProcess
from holdfast.core.improvement import clipped_value
from holdfast.tasks.verify import rewards_of
from holdfast.train.brake.judge import CAP, NOT_FINITE, check_rewards, finite, log_ratio
from holdfast.train.sampling.data import Rollouts
from holdfast.train.sampling.sampler import new_episodes
from holdfast.train.settings.seeds import derive_seed
from holdfast.train.setup import Run
from holdfast.types import TokenStats


@dataclass(frozen=True)
class Proof:
    """What the held-out prompts prove of one update.

    `e_value` is the highest that the test of "it does no harm" reached, `harm` the lower limit of what the mean reward
    loses, `reward` the mean of the updated policy's own answers. All None where its weights are not finite, which
    needs no test.
    """

    braked: bool
    prompts: int
    e_value: float | None = None
    harm: float | None = None
    reward: float | None = None
    factor: None = None

    def metrics(self) -> dict[str, int | float]:
        """For the step's line, as far as there are numbers."""
        numbers = {"brake_e": self.e_value, "brake_harm": self.harm, "brake_reward": self.reward}
        return {"brake_prompts": self.prompts} | {name: v for name, v in numbers.items() if v is not None}

    def warnings(self) -> list[str]:
        """That a step was not taken, and why."""
        if not self.braked:
            return []
        if self.harm is None:
            return [NOT_FINITE]
        return [
            f"brake: the step was not taken: {self.prompts} held-out prompts prove that it lowers the mean reward, by "
            f"at least {self.harm:.3g} (e-value {self.e_value:.3g})"
        ]


class Certificate:
    """Tests every step anew."""

    def __init__(self, run: Run) -> None:
        self.run, self.config, self.updater = run, run.config, run.updater

    def judge(self, held: Rollouts, before: TokenStats, step: int) -> Proof:
        """The test of the weights as they are now, by answers of theirs to the held-out prompts."""
        _, prompts = held.group_ids.unique(return_inverse=True)
        sizes = prompts.bincount().double()
        if not finite(self.updater.parameters):
            return Proof(True, len(sizes))
        rewards = self._answers(held, step)
        low, high = self.config.guard.brake_rewards
        check_rewards(rewards, (low, high), step)
        found = (held.rewards, torch.tensor(rewards))
        was, now = (((values.double() - low) / (high - low)).clamp(0, 1) for values in found)
        harm = clipped_value(self._log_ratio(held, before), was, CAP) - now
        units = torch.zeros_like(sizes).index_add_(0, prompts, harm) / sizes
        test = EProcess(self.config.guard.brake_level).update(units)
        limit, mean = test.lower() * (high - low), statistics.fmean(rewards)
        return Proof(test.certified, len(sizes), test.highest, limit, mean)

    def undone(self, step: int) -> None:
        """The engine that answered has the old weights again, under the step's number."""
        self.run.judge.sync(self.run.engine_view, step)

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
        return log_ratio(held, before)

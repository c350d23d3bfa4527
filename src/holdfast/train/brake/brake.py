"""The brake: prompts held out of an update judge it, and a step that does not pass is not taken.

Between the last optimiser step and the engine's new weights: docs/guard.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from holdfast.errors import HoldfastError
from holdfast.train.brake.certificate import Certificate
from holdfast.train.brake.controller import Controller
from holdfast.train.brake.judge import Judge, Verdict, check_rewards
from holdfast.train.brake.snapshot import Snapshot
from holdfast.train.keep.stopwatch import Stopwatch
from holdfast.train.policy.forward import stats_of
from holdfast.train.sampling.data import Rollouts
from holdfast.train.settings.seeds import derive_seed
from holdfast.train.setup import Run
from holdfast.train.update import Updated
from holdfast.types import TokenStats


@dataclass(frozen=True)
class Taken:
    """One step: the rollouts that were trained on, what the update saw of them, and the brake's part.

    `held` are the rollouts held out, `before` the policy on them before the update; `in_a_row` counts the steps up to
    this one that were not taken; `scale` is the factor on the learning rate from the next step on.
    """

    trained: Rollouts
    updated: Updated
    held: Rollouts | None = None
    before: TokenStats | None = None
    verdict: Verdict | None = None
    in_a_row: int = 0
    scale: float = 1.0

    def metrics(self) -> dict[str, int | float]:
        """For the step's line: whether it was braked (1 or 0), what that rests on, and what a resumed run needs."""
        if self.verdict is None:
            return {}
        record: dict[str, int | float] = {"braked": int(self.verdict.braked), "braked_in_a_row": self.in_a_row}
        scale = {} if self.verdict.factor is None else {"brake_scale": self.scale}
        return record | self.verdict.metrics() | scale

    def warnings(self) -> list[str]:
        """What a person should know of the verdict."""
        return [] if self.verdict is None else self.verdict.warnings()


class Free:
    """No brake: every step is taken as it is."""

    scale = 1.0

    def __init__(self, run: Run) -> None:
        self.updater = run.updater

    def step(self, rollouts: Rollouts, step: int, clock: Stopwatch) -> Taken:
        """All optimiser steps on the rollouts."""
        return Taken(rollouts, self.updater.step(rollouts, step, clock))


class Brake:
    """Has every step of a run judged.

    `in_a_row` counts the last steps that were not taken, `scale` is the factor on the scheduled learning rate that
    verdicts have come to; both go on where a resumed run's metrics end.
    """

    def __init__(self, run: Run, judge: Judge) -> None:
        self.run, self.judge, self.config, self.updater = run, judge, run.config, run.updater
        records = run.folder.read_metrics()
        self.in_a_row: int = _last(records, "braked_in_a_row", 0)
        self.scale: float = _last(records, "brake_scale", 1.0)

    def step(self, rollouts: Rollouts, step: int, clock: Stopwatch) -> Taken:
        """All optimiser steps on the rollouts that are not held out, undone where those that are speak against them.

        Raises:
            DataError: a reward outside `guard.brake_rewards`; the weights are what they were.
        """
        check_rewards(rollouts.rewards.tolist(), self.config.guard.brake_rewards, step)
        trained, held = self.split(rollouts, step)
        with clock.measure("brake"):
            rows = torch.arange(len(held.prompts))
            before = stats_of(self.run.policy, held.sequences, rows, self.config.batch.micro_batch_tokens)
            kept = Snapshot.of(self.updater)
        updated = self.updater.step(trained, step, clock)
        with clock.measure("brake"):
            try:
                verdict = self.judge.judge(held, before, step)
            except HoldfastError:
                kept.put_back(self.updater)
                raise
            if verdict.braked:
                kept.put_back(self.updater)
                self.judge.undone(step)
        self.in_a_row, self.scale = self.counted(verdict)
        return Taken(trained, updated, held, before, verdict, self.in_a_row, self.scale)

    def counted(self, verdict: Verdict) -> tuple[int, float]:
        """What the verdict makes of `in_a_row` and `scale`, which stays within `guard.brake_scale_range`."""
        low, high = self.config.guard.brake_scale_range
        scale = self.scale if verdict.factor is None else min(max(self.scale * verdict.factor, low), high)
        return (self.in_a_row + 1 if verdict.braked else 0), scale

    def split(self, rollouts: Rollouts, step: int) -> tuple[Rollouts, Rollouts]:
        """To train on, and held out: whole groups, chosen by seed and step alone.

        Two groups may have drawn the same prompt, and are independent draws all the same.
        """
        groups, number = rollouts.group_ids.unique(return_inverse=True)
        generator = torch.Generator().manual_seed(derive_seed(self.config.seed, "brake", step))
        out = torch.isin(number, torch.randperm(len(groups), generator=generator)[: self.config.held_out])
        return rollouts.select((~out).nonzero()[:, 0]), rollouts.select(out.nonzero()[:, 0])


def brake_of(run: Run) -> Brake | Free:
    """What the configuration asks for."""
    judges = {"certificate": Certificate, "controller": Controller}
    kind = run.config.guard.brake
    return Free(run) if kind == "off" else Brake(run, judges[kind](run))


def _last(records: list[dict[str, Any]], name: str, start: Any) -> Any:
    """The newest value of a number that a line may lack: step 0's, or one that a disk damaged."""
    return next((record[name] for record in reversed(records) if name in record), start)

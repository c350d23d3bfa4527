"""The `[guard]` table of a run file: the checks beside a run, and the brake.

Every key says what it is: `settings/reference.py` makes the tables of docs/trainer.md from these descriptions.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from holdfast.guard.settings import GuardSettings
from holdfast.train.settings.section import Section


class GuardConfig(Section):
    """The audit's checks beside the run: alarms in metrics.jsonl and trackers, and a halt where one is asked for.

    The brake works with `on` and without it.
    """

    on: bool = Field(default=False, description="look at the last steps while the run goes on (docs/guard.md)")
    first: int = Field(default=20, ge=8, description="first steps, which show what is normal for this run")
    last: int = Field(default=80, ge=8, description="newest steps that are compared with them")
    every: int = Field(default=5, ge=1, description="steps between two looks")
    confirm: int = Field(default=2, ge=1, description="looks in a row that find the same before it is an alarm")
    halt_on: Literal["never", "critical", "warning"] = Field(
        default="never", description="severity of an alarm that ends the run, with a checkpoint and the evidence"
    )
    brake: Literal["off", "certificate"] = Field(
        default="off", description="certificate: a step that held-out prompts prove harmful is not taken"
    )
    brake_share: float = Field(
        default=0.25, gt=0.0, lt=1.0, description="share of a step's prompts that are held out of its update [brake]"
    )
    brake_level: float = Field(
        default=0.95, gt=0.0, lt=1.0, description="confidence of each step's test that it does harm [brake]"
    )
    brake_rewards: list[float] = Field(
        default_factory=lambda: [0.0, 1.0],
        min_length=2,
        max_length=2,
        description="lowest and highest reward that there can be [brake]",
    )
    brake_in_a_row: int = Field(
        default=3, ge=1, description="steps in a row that were not taken: a critical alarm [brake]"
    )

    @model_validator(mode="after")
    def _rewards_have_a_range(self) -> GuardConfig:
        low, high = self.brake_rewards
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(
                f"brake_rewards = {self.brake_rewards}: the lowest and the highest reward that there can be, in this "
                "order, both finite; for example [0.0, 1.0]"
            )
        return self

    def settings(self) -> GuardSettings:
        """What the guard is told."""
        return GuardSettings(self.first, self.last, self.every, self.confirm, self.halt_on)

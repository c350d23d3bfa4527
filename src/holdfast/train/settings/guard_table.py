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
    brake: Literal["off", "certificate", "controller"] = Field(
        default="off",
        description="certificate: a step that held-out prompts prove harmful is not taken; controller: nor one that "
        "they do not think worth taking, and they set the learning rate",
    )
    brake_share: float = Field(
        default=0.25, gt=0.0, lt=1.0, description="share of a step's prompts that are held out of its update [brake]"
    )
    brake_level: float = Field(
        default=0.95, gt=0.0, lt=1.0, description="confidence of each step's test that it does harm [certificate]"
    )
    brake_rewards: list[float] = Field(
        default_factory=lambda: [0.0, 1.0],
        min_length=2,
        max_length=2,
        description="lowest and highest reward that there can be [brake]",
    )
    brake_z: float = Field(default=0.5, ge=0.0, description="standard errors taken off a step's gain [controller]")
    brake_scale_range: list[float] = Field(
        default_factory=lambda: [0.001, 10.0],
        min_length=2,
        max_length=2,
        description="lowest and highest factor on the scheduled learning rate [controller]",
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

    @model_validator(mode="after")
    def _the_rate_can_stay(self) -> GuardConfig:
        low, high = self.brake_scale_range
        if not (0 < low <= 1 <= high and math.isfinite(high)):
            raise ValueError(
                f"brake_scale_range = {self.brake_scale_range}: the lowest and the highest factor on the learning "
                "rate, in this order, above 0, with 1 between them; for example [0.001, 10.0], or [0.001, 1.0] to "
                "lower it alone"
            )
        if not math.isfinite(self.brake_z):
            raise ValueError(f"brake_z = {self.brake_z}: a finite number from 0 on; nearest valid value: 1.0")
        return self

    def fewest_held_out(self) -> tuple[int, str]:
        """The least number of held-out prompts that a verdict can rest on, and what it takes them for."""
        if self.brake == "controller":
            return 2, "for a standard error over prompts"
        from holdfast.core.betting import fewest_units

        needed = fewest_units(self.brake_level, highest=1.0)
        return needed, f"to prove even the loss of all reward at guard.brake_level = {self.brake_level:g}"

    def settings(self) -> GuardSettings:
        """What the guard is told."""
        return GuardSettings(self.first, self.last, self.every, self.confirm, self.halt_on)

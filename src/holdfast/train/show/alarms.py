"""The guard of a run of ours: the audit's checks on its last steps, into its metrics; a halt where one is asked for."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from holdfast.train.keep.folder import RunFolder
from holdfast.train.settings.config import GuardConfig, RunConfig

if TYPE_CHECKING:
    from holdfast.guard.guard import Guard, Look


def guard_of(config: RunConfig, folder: RunFolder) -> Guard | None:
    """The guard that the configuration asks for, which knows the steps that a resumed run has taken."""
    if not config.guard.on:
        return None
    from holdfast.guard.guard import Guard

    guard = Guard(
        config.guard.settings(), folder.path / "guard", "Holdfast", rollouts=folder.path / "rollouts", after=time.time()
    )
    for record in folder.read_metrics():
        guard.numbers(record["step"], record)
    return guard


def guarded(record: dict[str, Any], guard: Guard | None) -> tuple[dict[str, Any], Look | None]:
    """The step's record with what the guard has to say of it, and that in full; the record as it is without one."""
    if guard is None:
        return record, None
    guard.numbers(record["step"], record)
    look = guard.look(record["step"])
    fresh = [f"guard, {f.severity}: {f.headline}" for f in look.fresh]
    where = [f"guard: the evidence is in {look.page}"] if look.page is not None else []
    warnings = [*record.get("warnings", []), *fresh, *where, *look.said]
    return record | dict(look.values) | ({"warnings": warnings} if warnings else {}), look


def braked(record: dict[str, Any], look: Look | None, settings: GuardConfig) -> tuple[dict[str, Any], Look | None]:
    """The same with a critical alarm where the brake took none of the last steps; it needs no `guard.on`.

    Under a controller they count once the learning rate is at its lowest: until then it is still looking for one.
    """
    count = record.get("braked_in_a_row", 0)
    if count < settings.brake_in_a_row or record.get("brake_scale", 0.0) > settings.brake_scale_range[0]:
        return record, look
    from holdfast.guard.guard import Look, standing_still

    proven = settings.brake == "certificate"
    alarm = standing_still(count, chance=(1 - settings.brake_level) ** count if proven else None)
    look = look or Look(record["step"])
    look = replace(look, alarms=(alarm, *look.alarms), halt=look.halt or settings.halt_on != "never")
    values = {"guard/worst": 2.0, "guard/brake": 2.0}
    told = [*record.get("warnings", []), f"guard, {alarm.severity}: {alarm.headline}; {alarm.fix}"]
    return record | values | {"warnings": told}, look


def halting(look: Look) -> dict[str, Any]:
    """What the summary of a halted run says."""
    worst = look.alarms[0]
    return {
        "halted": {
            "step": look.step,
            "alarm": worst.name,
            "severity": worst.severity,
            "headline": worst.headline,
            "fix": worst.fix,
            **({"page": str(look.page)} if look.page is not None else {}),
        }
    }

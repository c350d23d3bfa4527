"""The guard itself: numbers and rollouts of a run as they come, and what the audit's checks say of the last steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from holdfast.audit.course import Course, Series
from holdfast.audit.judge.advice import advise_on
from holdfast.audit.judge.auditor import Audit, Auditor
from holdfast.audit.judge.finding import SEVERITIES, Finding
from holdfast.audit.measure.by_step import ByStep
from holdfast.audit.read.loaders.own import ends_as_parquet, read
from holdfast.audit.read.reading import Reading, natural
from holdfast.audit.read.scalars.names import known_names, taken
from holdfast.audit.read.scalars.runs import ScalarLog
from holdfast.audit.shards.shard import dump, load
from holdfast.audit.show.outputs import write_reports
from holdfast.guard.settings import GuardSettings

T = TypeVar("T")
ALWAYS = ("not_finite", "invalid_logprobs")
"""Findings that need no comparison with the first steps."""
MEMORY = 0.8
"""Correlation of neighbouring steps that is allowed for: a guard looks dozens of times at a run, at a hundred steps a
time, in which slow swings look like a change of level."""
MOST_PAST = 1024
LEVELS = {severity: level for level, severity in enumerate(SEVERITIES)}


@dataclass(frozen=True)
class Look:
    """What a guard has to say of a step.

    `alarms` are those that are on, `fresh` those of them that are new or worse; `page` is the evidence, where it was
    written; `said` what a person should be told once. `values` are for trackers: the severity (0 info, 1 warning, 2
    critical) of the worst alarm and of each, and the seconds that the guard took.
    """

    step: int
    alarms: tuple[Finding, ...] = ()
    fresh: tuple[Finding, ...] = ()
    halt: bool = False
    page: Path | None = None
    said: tuple[str, ...] = ()
    values: Mapping[str, float] = field(default_factory=dict)


def standing_still(count: int, chance: float | None = None) -> Finding:
    """The alarm of a brake that took none of the last `count` steps.

    `chance` is that of so many harmless ones; None where none is known, the learning rate being at its lowest.
    """
    if chance is None:
        return Finding(
            name="brake",
            kind="training",
            severity="critical",
            headline=f"{count} steps in a row were not taken, the last at the lowest learning rate allowed",
            meaning="The policy stands still: by the held-out prompts no step that short is sure to gain anything.",
            fix="hold out more prompts (guard.brake_share, batch.prompts) or lower guard.brake_z; if the policy has "
            "nothing left to learn, the run is done",
            evidence={"steps": count},
        )
    return Finding(
        name="brake",
        kind="training",
        severity="critical",
        headline=f"{count} steps in a row were not taken: the brake found each of them harmful",
        meaning="The policy stands still, and what harms it lasts: so many harmless steps are braked by chance with "
        f"probability {chance:.2g} at most.",
        fix="lower optimizer.learning_rate, and look at the sign and size of rewards and advantages in the rollouts",
        evidence={"steps": count, "chance": chance},
    )


@dataclass
class Guard:
    """Watches one run. It never raises: what fails in it is said once, and that part is off from then on.

    `names` is the framework whose names the numbers have (`scalars.names.TABLES`); rollouts are read from new parquet
    files of Holdfast's under `rollouts`, those of `after` (seconds since 1970) and later; evidence is written to `out`.
    """

    settings: GuardSettings
    out: Path
    names: str
    rollouts: Path | None = None
    after: float = 0.0
    _points: dict[str, dict[int, float]] = field(default_factory=dict)
    _past: dict[str, list[float]] = field(default_factory=dict)
    _before: Auditor | None = None
    _now: Auditor | None = None
    _read: set[Path] = field(default_factory=set)
    _streaks: dict[str, int] = field(default_factory=dict)
    _told: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The gravest severity that was told of each alarm, and at which look it was last on."""
    _off: set[str] = field(default_factory=set)
    _said: list[str] = field(default_factory=list)
    _steps: int = 0
    _seconds: float = 0.0

    def numbers(self, step: int, values: Mapping[str, object]) -> None:
        """Take in what a run logs of a step; numbers under other names are passed over."""
        self._safely("numbers", lambda: self._take(step, values), None)

    def look(self, step: int) -> Look:
        """What is to be said after a step whose numbers were taken in: nothing where no look is due."""
        self._steps += 1
        if self._steps % self.settings.every:
            return Look(step, said=self._news())
        start = time.perf_counter()
        self._safely("rollouts", self._read_files, None)
        audit = self._safely("rollouts", self._audit, None) if self._now or self._before else None
        if audit is None:
            self._now = self._before = None
            audit = self._safely("numbers", self._audit, None)
        found = () if audit is None else self._judged(audit)
        alarms = self._confirmed(found)
        fresh = self._fresh(alarms)
        limits = SEVERITIES[SEVERITIES.index(self.settings.halt_on) :] if self.settings.halt_on in SEVERITIES else ()
        halt = any(finding.severity in limits for finding in alarms)
        page = None
        if audit is not None and (halt or any(f.severity == "critical" for f in fresh)):
            page = self._safely("the page", lambda: self._write(audit, step), None)
        self._seconds += time.perf_counter() - start
        return Look(step, alarms, fresh, halt, page, self._news(), self._values(alarms))

    def _take(self, step: int, values: Mapping[str, object]) -> None:
        start = time.perf_counter()
        for name in known_names(self.names):
            value = values.get(name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                points = self._points.setdefault(name, {})
                points[step] = float(value)
                if len(points) > 2 * (self.settings.first + self.settings.last):
                    kept = sorted(points)
                    keep = kept[: self.settings.first] + kept[-self.settings.last :]
                    self._points[name] = {at: points[at] for at in keep}
                    past = self._past.setdefault(name, [])
                    past += [points[at] for at in kept[self.settings.first : -self.settings.last]]
                    del past[:-MOST_PAST]
        self._seconds += time.perf_counter() - start

    def _course(self) -> Course:
        """The first steps and the last ones; those between tell how much the numbers vary."""
        first, last = self.settings.first, self.settings.last
        series = {}
        for ours, (name, minus) in taken(self.names, self._points).items():
            points = self._points[name]
            steps = sorted(points)
            between = steps[first:-last]
            steps = steps if len(steps) <= first + last else steps[:first] + steps[-last:]
            values, past = (
                np.array(some, dtype=float)
                for some in ([points[step] for step in steps], self._past.get(name, []) + [points[s] for s in between])
            )
            if minus:
                values, past = 1 - values, 1 - past
            series[ours] = Series(np.array(steps), values, named=name, past=past, memory=MEMORY)
        return Course(series, self.names)

    def _audit(self) -> Audit:
        """The audit of the last steps: of their rollouts, where there are files of them, and of the numbers."""
        whole = self._recent()
        whole.scalars, whole.by_step = ScalarLog(self._course(), ()), ByStep()
        if not whole.facts.sequences:
            whole.facts.steps |= whole.scalars.course.steps
        return whole.result()

    def _read_files(self) -> None:
        """Take in the new files that are complete."""
        if self.rollouts is None or not self.rollouts.is_dir():
            return
        for file in sorted(self.rollouts.rglob("*.parquet"), key=natural):
            if file in self._read or file.stat().st_mtime < self.after or not ends_as_parquet(file):
                continue
            self._read.add(file)
            now = self._now = self._now or Auditor(Reading())
            for chunk in read(file, now.reading):
                now.feed(chunk, str(file), len(self._read))
            if len(now.facts.steps) >= self.settings.last:
                self._before, self._now = now, None

    def _recent(self) -> Auditor:
        """A copy of what was read of the last steps: of `last` of them at least, and less than twice as many."""
        parts = [load(dump(part)) for part in (self._before, self._now) if part is not None]
        whole = parts[0] if parts else Auditor(Reading(), checks=[])
        for part in parts[1:]:
            whole.merge(part)
        return whole

    def _judged(self, audit: Audit) -> tuple[Finding, ...]:
        """Findings worth an alarm; before the first steps are known, only those that need no comparison."""
        steps = max((len(points) for points in self._points.values()), default=len(audit.facts.steps))
        known = steps >= self.settings.first
        return tuple(f for f in audit.findings if f.severity != "info" and (known or f.name in ALWAYS))

    def _confirmed(self, found: tuple[Finding, ...]) -> tuple[Finding, ...]:
        """Those that were there at the last looks too."""
        self._streaks = {f.name: self._streaks.get(f.name, 0) + 1 for f in found}
        return tuple(f for f in found if self._streaks[f.name] >= self.settings.confirm)

    def _fresh(self, alarms: tuple[Finding, ...]) -> tuple[Finding, ...]:
        """Alarms that are new, worse than told, or back after `confirm` looks without them."""
        now = self._steps // self.settings.every
        told = {
            name: (level, seen) for name, (level, seen) in self._told.items() if now - seen <= self.settings.confirm
        }
        fresh = tuple(f for f in alarms if LEVELS[f.severity] > told.get(f.name, (-1, 0))[0])
        self._told = told | {f.name: (max(LEVELS[f.severity], told.get(f.name, (0, 0))[0]), now) for f in alarms}
        return fresh

    def _write(self, audit: Audit, step: int) -> Path:
        written = write_reports(self.out / f"step_{step:04d}", audit, advise_on(audit), title=f"Guard at step {step}")
        return next(path for path in written if path.suffix == ".html")

    def _values(self, alarms: tuple[Finding, ...]) -> dict[str, float]:
        worst = max((LEVELS[f.severity] for f in alarms), default=0)
        each = {f"guard/{f.name}": float(LEVELS[f.severity]) for f in alarms}
        return {"guard/worst": float(worst), "guard/seconds": self._seconds, **each}

    def _news(self) -> tuple[str, ...]:
        said, self._said = tuple(self._said), []
        return said

    def _safely(self, part: str, work: Callable[[], T], otherwise: T) -> T:
        """Do it; where it fails, say so once and leave that part off."""
        if part in self._off:
            return otherwise
        try:
            return work()
        except Exception as error:
            self._off.add(part)
            told = str(error).partition("\n")[0][:200]
            self._said.append(
                f"the guard's look at {part} failed ({type(error).__name__}: {told}) and is off from now on; "
                "the run goes on"
            )
            return otherwise

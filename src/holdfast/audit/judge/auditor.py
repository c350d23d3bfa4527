"""Feeds chunks to every check and statistic, and says at any time what they add up to."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from holdfast.audit.course import MISMATCH, Course
from holdfast.audit.judge.checks import CHECKS, Check, Facts
from holdfast.audit.judge.course import judge_course
from holdfast.audit.judge.finding import SEVERITIES, Finding
from holdfast.audit.judge.more import more_to_log
from holdfast.audit.measure.by_step import ByStep
from holdfast.audit.measure.levels import FEWEST_STEPS
from holdfast.audit.measure.sample import Sample
from holdfast.audit.measure.statistics import Statistics
from holdfast.audit.measure.tokens import Unit
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Chunk
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.scalars.runs import ScalarLog

FEWEST_PROMPTS = 8
"""With fewer, intervals over prompts say nothing: sequences are resampled instead, and the audit says so."""
DECIDING_TOKENS = 4_000_000
"""Response tokens that are held back at most until FEWEST_PROMPTS prompts were seen."""
FEWEST_TOKENS, FEWEST_SEQUENCES = 1000, 8
"""With fewer, no check has the power to clear a run."""

CAUSES = ("repeated_token",)
"""Checks of tokens whose finding explains what the reward, the lengths and the entropy do from then on."""


@dataclass(frozen=True)
class Audit:
    """What an audit has to say; everything the page, the JSON and the terminal show comes from here.

    `withheld` are findings that a data error makes worthless; `skipped` maps a check to the columns it lacks, `asked`
    each check that ran to its question. `unjudged` says in sentences why a run in which nothing was found is not
    thereby healthy, and what to log to know more; empty where the checks that matter could run. `course` are the
    numbers by step, from the tokens or from a log of numbers; `framework` is whose log it is, where that is known, and
    `more` what to log to know more: (what, the line to set).
    """

    facts: Facts
    findings: tuple[Finding, ...]
    withheld: tuple[Finding, ...]
    skipped: dict[str, tuple[str, ...]]
    statistics: Statistics
    sample: Sample
    reading: Reading
    sources: tuple[str, ...] = ()
    asked: dict[str, str] = field(default_factory=dict)
    unjudged: tuple[str, ...] = ()
    course: Course = field(default_factory=Course)
    framework: str | None = None
    more: tuple[tuple[str, str], ...] = ()

    @property
    def of_numbers(self) -> bool:
        """Whether a log of numbers by step was read, without any token."""
        return not self.facts.sequences and bool(self.course.series)


@dataclass
class Auditor:
    """One audit under way."""

    reading: Reading
    checks: Sequence[Check] = field(default_factory=lambda: [check() for check in CHECKS])
    facts: Facts = field(default_factory=Facts)
    statistics: Statistics = field(default_factory=Statistics)
    sample: Sample = field(default_factory=Sample)
    sources: list[str] = field(default_factory=list)
    unit: Unit | None = None
    """What intervals resample; None until it is decided, and chunks are held back that long."""
    by_step: ByStep = field(default_factory=ByStep)
    scalars: ScalarLog | None = None
    """A log of numbers of the same run."""
    framework: str | None = None
    _held: list[tuple[Chunk, str]] = field(default_factory=list)
    _prompts: set[int] = field(default_factory=set)

    def feed(self, chunk: Chunk, source: str = "") -> None:
        """Measure one chunk, or hold it back until the log shows whether it has prompts to resample."""
        if len(chunk) == 0:
            return
        if self.unit is not None:
            self._measure(chunk, source)
            return
        self._held.append((chunk, source))
        if len(self._prompts) < FEWEST_PROMPTS:
            self._prompts.update(View(chunk).group.tolist())
        if len(self._prompts) >= FEWEST_PROMPTS:
            self._decide("prompt")
        elif sum(held.token_count for held, _ in self._held) > DECIDING_TOKENS:
            # A log of few prompts so far, sampled very often each, will have more; one without prompts will not.
            self._decide("prompt" if len(self._prompts) > 1 else "sequence")

    def _decide(self, unit: Unit) -> None:
        self.unit = self.facts.unit = unit
        held, self._held = self._held, []
        for chunk, source in held:
            self._measure(chunk, source)

    def _measure(self, chunk: Chunk, source: str) -> None:
        view = View(chunk, self.facts.sequences, self.unit or "prompt")
        self._count(view)
        for check in self.checks:
            if view.has(*check.needs):
                check.update(view)
        self.statistics.update(view)
        self.by_step.update(view)
        self.sample.update(view)
        if source and source not in self.sources:
            self.sources.append(source)

    def result(self) -> Audit:
        """All findings so far, most severe first, with those withheld that a data error makes worthless."""
        if self._held:
            return self._as_if_ended().result()
        self.facts.logprob_resolution = self.reading.logprob_resolution
        skipped = {c.name: tuple(sorted(c.needs - self.facts.columns)) for c in self.checks}
        course = self._course()
        found = [f for c in self.checks if not skipped[c.name] for f in c.findings(self.facts)]
        asked = {c.name: c.asks for c in self.checks if not skipped[c.name]}
        of_course, course_asked, course_skipped = judge_course(course, of_tokens=bool(self.facts.sequences))
        if not self.facts.sequences and course.series:
            skipped = course_skipped
        found += _as_consequences(of_course) if any(f.name in CAUSES for f in found) else of_course
        found.sort(key=lambda f: (-SEVERITIES.index(f.severity), f.kind != "data"))
        broken = any(f.invalidates for f in found)
        withheld = tuple(f for f in found if broken and f.kind == "drift")
        return Audit(
            facts=self.facts,
            findings=tuple(f for f in found if f not in withheld),
            withheld=withheld,
            skipped={name: lacking for name, lacking in skipped.items() if lacking},
            statistics=self.statistics,
            sample=self.sample,
            reading=self.reading,
            sources=tuple(self.sources),
            asked=asked | course_asked,
            unjudged=tuple(_unjudged(self.facts) if self.facts.sequences else _course_unjudged(course)),
            course=course,
            framework=course.framework,
            more=more_to_log(course) if not self.facts.sequences else (),
        )

    def _course(self) -> Course:
        """Numbers by step of the tokens, and those of a log of numbers that the tokens do not tell."""
        logged = self.scalars.course if self.scalars else Course()
        return Course({**logged.series, **self.by_step.course().series}, self.framework or logged.framework)

    def _as_if_ended(self) -> Auditor:
        """A copy that takes what is held back for all there is; a run that goes on may still show more prompts."""
        ended = replace(
            self,
            checks=copy.deepcopy(self.checks),
            facts=copy.deepcopy(self.facts),
            statistics=copy.deepcopy(self.statistics),
            sample=copy.deepcopy(self.sample),
            by_step=copy.deepcopy(self.by_step),
            sources=list(self.sources),
        )
        ended._decide("sequence")
        return ended

    def _count(self, view: View) -> None:
        facts, chunk = self.facts, view.chunk
        facts.sequences += len(chunk)
        facts.tokens += chunk.token_count
        facts.own_tokens += int(view.own.sum())
        facts.measured_tokens += int(view.measured.sum())
        facts.columns |= set(chunk.present)
        facts.longest = max(facts.longest, int(view.lengths.max()))
        if view.has("step"):
            facts.steps |= {int(s) for s in set(view.step.tolist()) if s >= 0}


def _unjudged(facts: Facts) -> Iterator[str]:
    """Why silence of the checks proves nothing, each reason with what to log."""
    if not facts.sequences:
        return
    lacking = [
        whose
        for whose, name in (("engine", "rollout_logprobs"), ("trainer", "trainer_logprobs"))
        if name not in facts.columns
    ]
    if lacking:
        yield (
            f"the log has no log-probabilities of the {' and none of the '.join(lacking)}, so how far engine and "
            "trainer are apart is not known. Log both for every response token"
            + (" (`--model DIR` scores a log's tokens with the trainer's weights)" if lacking == ["trainer"] else "")
        )
    elif facts.measured_tokens < FEWEST_TOKENS:
        yield (
            f"{facts.measured_tokens:,} tokens have log-probabilities of both engine and trainer, and the checks of "
            f"drift need {FEWEST_TOKENS:,}. Log more rollouts, or those of more steps"
        )
    if facts.sequences < FEWEST_SEQUENCES:
        yield (
            f"{facts.sequences:,} sequence{'s are' if facts.sequences > 1 else ' is'} too few to tell chance from "
            f"fault: log at least {FEWEST_SEQUENCES}, of several prompts"
        )


def _as_consequences(found: Sequence[Finding]) -> list[Finding]:
    """Findings of the course that another one explains: worth a word."""
    return [replace(finding, severity="info") for finding in found]


def _course_unjudged(course: Course) -> Iterator[str]:
    """Why a log of numbers in which nothing was found does not clear the run."""
    if not course.series:
        return
    if not any(course.finite(name) is not None for name in MISMATCH):
        yield (
            "the log has no number that tells how far engine and trainer are apart. What to log for it stands under "
            '"To know more, log this"'
        )
    reward = course.finite("reward")
    if reward is None:
        yield "the log has no reward, without which no course can be called good"
    longest = max(len(series) for series in course.series.values())
    if longest < FEWEST_STEPS:
        yield f"{longest} steps are too few to tell a course from chance: log {FEWEST_STEPS} or more"

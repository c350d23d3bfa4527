"""Feeds chunks to every check and statistic, and says at any time what they add up to."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace

from holdfast.audit.course import MISMATCH, Course
from holdfast.audit.judge.attribution import Attribution, Causes, attribute
from holdfast.audit.judge.attribution.whose import Whose, Writer, findings_of
from holdfast.audit.judge.checks import CHECKS, Check, Facts
from holdfast.audit.judge.course import judge_course
from holdfast.audit.judge.finding import SEVERITIES, Finding
from holdfast.audit.judge.more import more_to_log
from holdfast.audit.measure.adding import add_up
from holdfast.audit.measure.by_step import ByStep
from holdfast.audit.measure.levels import FEWEST_STEPS
from holdfast.audit.measure.sample import Sample, in_reading_order
from holdfast.audit.measure.statistics import Statistics
from holdfast.audit.measure.tokens import FILE_BITS, Unit
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Chunk
from holdfast.audit.read.reading import MOST_EXAMPLES, Reading, natural
from holdfast.audit.read.scalars.runs import ScalarLog
from holdfast.errors import DataError

FEWEST_PROMPTS = 8
"""With fewer, intervals over prompts say nothing: sequences are resampled instead, and the audit says so."""
FEWEST_TOKENS, FEWEST_SEQUENCES = 1000, 8
"""With fewer, no check has the power to clear a run."""

DIVIDED = ("temperature_mismatch", "support_mismatch")
"""Data errors that are themselves among the causes which the drift is divided among."""
ASKS_TEXT = ("retokenised",)
"""Checks that run where a tokenizer was given."""
CAUSES = ("repeated_token",)
"""Checks of tokens whose finding explains what the reward, the lengths and the entropy do from then on."""


@dataclass(frozen=True)
class Audit:
    """What an audit has to say; everything the page, the JSON and the terminal show comes from here.

    `withheld` are findings that a data error makes worthless; `skipped` maps a check to the columns it lacks, `asked`
    each check that ran to its question. `unjudged` says in sentences why a run in which nothing was found is not
    thereby healthy, and what to log to know more; empty where the checks that matter could run. `course` are the
    numbers by step, from the tokens or from a log of numbers; `attribution` says whose drift it is, nothing where a
    data error makes the log-probabilities worthless or none are known, `writers` which of several given checkpoints
    wrote each step; `framework` is whose log it is, where that is known, and `more` what to log to know more: (what,
    the line to set).
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
    attribution: Attribution | None = None
    writers: tuple[Writer, ...] = ()

    @property
    def of_numbers(self) -> bool:
        """Whether a log of numbers by step was read, without any token."""
        return not self.facts.sequences and bool(self.course.series)


@dataclass
class Measured:
    """What checks and statistics make of all chunks, with intervals over one unit."""

    checks: Sequence[Check]
    statistics: Statistics = field(default_factory=Statistics)
    causes: Causes = field(default_factory=Causes)

    def update(self, view: View) -> None:
        """Take in one chunk."""
        for check in self.checks:
            if view.has(*check.needs):
                check.update(view)
        self.statistics.update(view)
        self.causes.update(view)


@dataclass
class Auditor:
    """One audit under way, of a whole log or of some of its files: those of all files add up (`merge`).

    `log` says which log the files are of, where they are some of many. Until FEWEST_PROMPTS prompts were seen all is
    measured twice, with intervals over prompts and over sequences, since any file may still show more prompts.
    """

    reading: Reading
    checks: InitVar[Sequence[Check] | None] = None
    log: str = ""
    facts: Facts = field(default_factory=Facts)
    sample: Sample = field(default_factory=Sample)
    by_step: ByStep = field(default_factory=ByStep)
    scalars: ScalarLog | None = None
    """A log of numbers of the same run."""
    framework: str | None = None
    whose: Whose | None = None
    """Distances to several checkpoints, where these were given."""
    files: dict[str, int] = field(default_factory=dict)
    """Each file that was read, and its place in the log."""
    measured: dict[Unit, Measured] = field(init=False)
    _counts: dict[int, int] = field(default_factory=dict)
    """Sequences by the place of their file."""
    _prompts: set[int] = field(default_factory=set)

    def __post_init__(self, checks: Sequence[Check] | None) -> None:
        given = [check() for check in CHECKS] if checks is None else list(checks)
        self.measured = {"prompt": Measured(given), "sequence": Measured(copy.deepcopy(given))}

    @property
    def unit(self) -> Unit:
        """What intervals resample."""
        return "prompt" if len(self._prompts) >= FEWEST_PROMPTS else "sequence"

    def feed(self, chunk: Chunk, source: str = "", place: int | None = None) -> None:
        """Measure the next chunk of a file; `place` is the file's in the whole log (without: after all before)."""
        if len(chunk) == 0:
            return
        if source not in self.files:
            self.files[source] = max(self.files.values(), default=-1) + 1 if place is None else place
        at = self.files[source]
        before = self._counts.get(at, 0)
        view = View(chunk, (at << FILE_BITS) + before)
        view.codec = self.reading.codec
        self._counts[at] = before + len(chunk)
        self._note_prompts(view.group.tolist())
        for unit, measured in self.measured.items():
            measured.update(view if unit == "prompt" else view.by(unit))
        self._count(view)
        self.by_step.update(view)
        self.sample.update(view)

    def merge(self, other: Auditor) -> None:
        """Add the audit of other files of the same log, in any order; `other` is not to be used again.

        What is counted, sampled or among the largest is then what one audit of all files has, to the last bit. Sums of
        real numbers differ in their rounding, by less than 1e-9 of their size.

        Raises:
            DataError: another log (or run), other checks, or a file that both have read.
        """
        if self.log != other.log:
            raise DataError(f"these are parts of different logs, which do not add up: {self.log}, and {other.log}")
        if twice := sorted(set(self._counts) & set(other._counts)):
            names = [name for name, place in self.files.items() if place == twice[0]]
            raise DataError(f"{names[0] or 'a file'} is in both parts: give each file of the log to one of them")
        names, others = ([c.name for c in a.measured["prompt"].checks] for a in (self, other))
        if names != others:
            raise DataError(f"the parts ran different checks, {sorted(set(names) ^ set(others))}: run the same in all")
        self._note_prompts(other._prompts)
        for unit, measured in self.measured.items():
            if unit in other.measured:
                for mine, theirs in zip(measured.checks, other.measured[unit].checks, strict=True):
                    add_up(mine, theirs)
                add_up(measured.statistics, other.measured[unit].statistics)
                add_up(measured.causes, other.measured[unit].causes)
        self.facts.merge(other.facts)
        self.sample.merge(other.sample)
        self.by_step.merge(other.by_step)
        self.reading.merge(other.reading)
        self.reading.examples = sorted(self.reading.examples, key=lambda bad: natural(bad.path))[:MOST_EXAMPLES]
        self.files |= other.files
        self._counts |= other._counts
        self.framework = self.framework or other.framework

    def _note_prompts(self, groups: Iterable[int]) -> None:
        if len(self._prompts) < FEWEST_PROMPTS:
            self._prompts.update(groups)
            if len(self._prompts) >= FEWEST_PROMPTS:
                self._prompts = set(sorted(self._prompts)[:FEWEST_PROMPTS])
        if self.unit == "prompt":
            self.measured.pop("sequence", None)

    def result(self) -> Audit:
        """All findings so far, most severe first, with those withheld that a data error makes worthless."""
        self.facts.unit = self.unit
        self.facts.logprob_resolution = max(self.facts.logprob_resolution, self.reading.logprob_resolution)
        checks, statistics = self.measured[self.unit].checks, self.measured[self.unit].statistics
        checks = [c for c in checks if self.reading.codec is not None or c.name not in ASKS_TEXT]
        skipped = {c.name: tuple(sorted(c.needs - self.facts.columns)) for c in checks}
        course = self._course()
        starts = self._starts()
        found = [_placed(f, starts) for c in checks if not skipped[c.name] for f in c.findings(self.facts)]
        asked = {c.name: c.asks for c in checks if not skipped[c.name]}
        writers = self.whose.writers() if self.whose else ()
        found += findings_of(writers, self.whose.names) if self.whose else []
        of_course, course_asked, course_skipped = judge_course(course, of_tokens=bool(self.facts.sequences))
        if not self.facts.sequences and course.series:
            skipped = course_skipped
        found += _as_consequences(of_course) if any(f.name in CAUSES for f in found) else of_course
        found.sort(key=lambda f: (-SEVERITIES.index(f.severity), f.kind != "data"))
        broken = any(f.invalidates for f in found)
        withheld = tuple(f for f in found if broken and f.kind == "drift")
        worthless = any(f.invalidates and f.name not in DIVIDED for f in found)
        return Audit(
            writers=writers,
            attribution=None if worthless else attribute(self.measured[self.unit].causes),
            facts=self.facts,
            findings=tuple(f for f in found if f not in withheld),
            withheld=withheld,
            skipped={name: lacking for name, lacking in skipped.items() if lacking},
            statistics=statistics,
            sample=self.sample.placed(starts),
            reading=self.reading,
            sources=self._sources(),
            asked=asked | course_asked,
            unjudged=tuple(_unjudged(self.facts) if self.facts.sequences else _course_unjudged(course)),
            course=course,
            framework=course.framework,
            more=more_to_log(course) if not self.facts.sequences else (),
        )

    def _sources(self) -> tuple[str, ...]:
        read = sorted(filter(None, self.files), key=self.files.__getitem__)
        return tuple(dict.fromkeys((*read, *map(str, self.scalars.files if self.scalars else ()))))

    def _starts(self) -> dict[int, int]:
        """How many sequences come before each file, by its place."""
        places = sorted(self._counts)
        ends = itertools.accumulate((self._counts[place] for place in places), initial=0)
        return dict(zip(places, ends, strict=False))

    def _course(self) -> Course:
        """Numbers by step of the tokens, and those of a log of numbers that tokens do not tell, or of fewer steps."""
        logged = self.scalars.course if self.scalars else Course()
        shown = self.by_step.course().series
        told = {name: s for name, s in logged.series.items() if len(s) > len(shown.get(name, ()))}
        return Course({**shown, **told}, self.framework or logged.framework)

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


def _placed(finding: Finding, starts: Mapping[int, int]) -> Finding:
    """The same with sequences counted in reading order."""
    where = finding.where
    if not (where.sequences or where.positions):
        return finding
    sequences = tuple(in_reading_order(number, starts) for number in where.sequences)
    positions = tuple((in_reading_order(number, starts), at) for number, at in where.positions)
    return replace(finding, where=replace(where, sequences=sequences, positions=positions))


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

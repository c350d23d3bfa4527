"""What a check of a run's course is: a question to series by step, of whatever origin."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from holdfast.audit.course import Course, Series
from holdfast.audit.judge.finding import Finding, Severity, Where
from holdfast.audit.measure.levels import Levels, levels


@dataclass(frozen=True)
class CourseCheck:
    """`asks` is the question for the page; `needs` are series of the vocabulary, of which any one will do."""

    name: str
    asks: str
    needs: tuple[str, ...]
    find: Callable[[Course], Iterable[Finding]]


@dataclass(frozen=True)
class Progress:
    """What the reward did, for checks of other numbers: `said` ends their headline.

    It fell where its last level is surely below its first, or surely below its best with half of the gain gone.
    """

    known: bool
    rose: bool
    fell: bool
    said: str


def progress(course: Course) -> Progress:
    """Whether the reward rose or fell from the first fifth of the steps to the last, or from its best to the last."""
    found = levels(course.finite("reward"))
    if found is None:
        return Progress(False, False, False, "")
    half = found.first + 0.5 * max(0.0, found.peak - found.first)
    fell = found.fell() or (found.fell_from_peak() and found.last < half)
    rose = found.leans_up() and not fell
    words = "fell" if found.last < found.first and not rose else "rose" if rose else "did not rise"
    return Progress(True, rose, fell, f", while the reward {words} ({found.first:.3g} to {found.last:.3g})")


def told(course: Course, name: str, found: Levels, *, logs: bool = False) -> dict[str, float | int | str]:
    """The evidence of a level that changed."""
    first, last = (10**found.first, 10**found.last) if logs else (found.first, found.last)
    named = course.series[name].named
    return {
        "first fifth of the steps": first,
        "last fifth": last,
        "level changes at step": found.changed,
        "steps": found.count,
        **({"logged as": named} if named else {}),
    }


def late(series: Series) -> Where:
    """The newest steps of a series."""
    return Where(steps=tuple(int(step) for step in series.steps[-3:]))


def worse(first: bool, second: bool) -> Severity:
    """Critical, warning or info by two conditions in order."""
    return "critical" if first else "warning" if second else "info"

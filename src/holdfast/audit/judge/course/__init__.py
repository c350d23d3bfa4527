"""Checks of the course of a run: the same for a log of numbers and for the means by step of a log of tokens.

They compare levels (`holdfast.audit.measure.levels`): a change must be certain against the series' own scatter, and
large enough to matter, and a rising reward speaks for the run.
"""

from holdfast.audit.course import Course
from holdfast.audit.judge.course import numerics, responses, reward
from holdfast.audit.judge.course.check import CourseCheck
from holdfast.audit.judge.finding import Finding

FEWEST = 3
"""Steps without which no check has anything to look at."""
COURSE_CHECKS: tuple[CourseCheck, ...] = (*numerics.CHECKS, *reward.CHECKS, *responses.CHECKS)
TOKENS_KNOW_BETTER = ("entropy_collapse", "mismatch")
"""What the checks of tokens say more of: entropy that falls, and drift."""
TOKENS_SHOW = ("reward", "reward_std", "equal_groups", "length", "truncated", "entropy")


def checks_for(course: Course, *, of_tokens: bool) -> list[CourseCheck]:
    """All checks, or for a log of tokens those that it can feed and that its own checks do not replace."""
    if not of_tokens:
        return list(COURSE_CHECKS)
    shown = {*TOKENS_SHOW, *course.series}
    return [
        check for check in COURSE_CHECKS if check.name not in TOKENS_KNOW_BETTER and shown & set(check.needs) - {"loss"}
    ]


def judge_course(
    course: Course, *, of_tokens: bool = False
) -> tuple[list[Finding], dict[str, str], dict[str, tuple[str, ...]]]:
    """What was found, the question of each check that ran, and for the others what it takes: one of these series."""
    found: list[Finding] = []
    asked: dict[str, str] = {}
    skipped: dict[str, tuple[str, ...]] = {}
    for check in checks_for(course, of_tokens=of_tokens):
        longest = max((len(course.series[name]) for name in check.needs if name in course.series), default=0)
        if longest >= FEWEST:
            asked[check.name] = check.asks
            found += check.find(course)
        else:
            needed = " or ".join(check.needs)
            skipped[check.name] = (needed if not longest else f"{needed} of {FEWEST} steps or more",)
    return found, asked, skipped


__all__ = ["COURSE_CHECKS", "CourseCheck", "checks_for", "judge_course"]

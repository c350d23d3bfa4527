"""What the policy writes, over the steps: entropy, length, and the share that is cut at the limit."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from holdfast.audit.course import Course
from holdfast.audit.judge.course.check import CourseCheck, late, progress, told, worse
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.levels import levels

DOUBLED, MANIFOLD = 2.0, 5.0
NATS = 0.2
"""Entropy that a rise must exceed, nats per token."""
FELL_TO, COLLAPSED_TO = 0.6, 0.25
CUT_RISE, CUT_MUCH, CUT_NEARLY_ALL = 0.2, 0.3, 0.8
CUT_ALL, CUT_HALF = 0.95, 0.5
FEWEST = 3


def entropy_explodes(course: Course) -> Iterator[Finding]:
    """The entropy has surely doubled, and risen by NATS.

    Worth a word only where the reward rose and it is not fivefold; critical where the reward is known not to have.
    """
    series = course.finite("entropy")
    found = levels(series, logs=True)
    if series is None or found is None or not found.rose(math.log10(DOUBLED)):
        return
    first, last = 10**found.first, 10**found.last
    if last - first < NATS:
        return
    paid = progress(course)
    yield Finding(
        name="entropy_explodes",
        kind="training",
        severity=worse(paid.known and not paid.rose, not paid.rose or last > MANIFOLD * first),
        headline=f"the entropy rose from {first:.3g} to {last:.3g} nats per token, from step "
        f"{found.changed} on{paid.said}",
        meaning="The policy grows less sure of what it writes. Past some level responses fall apart into noise, which "
        "is paid nothing and teaches nothing.",
        fix="Go back to a checkpoint before the rise. Lower or remove the entropy bonus, lower the upper clip or mask "
        "tokens that engine and trainer disagree on, and look whether negative advantages push unlikely tokens down "
        "(their mass goes to all others).",
        evidence=told(course, "entropy", found, logs=True),
        where=late(series),
    )


def entropy_collapse(course: Course) -> Iterator[Finding]:
    """The entropy has surely fallen to FELL_TO of what it was; worth a word only where the reward rose.

    Critical below COLLAPSED_TO. Without a reward, that alone is a warning.
    """
    series = course.finite("entropy")
    found = levels(series, logs=True)
    if series is None or found is None or not found.fell(-math.log10(FELL_TO)):
        return
    first, last = 10**found.first, 10**found.last
    paid, gone = progress(course), last < COLLAPSED_TO * first
    if not paid.known and not gone:
        return
    yield Finding(
        name="entropy_collapse",
        kind="training",
        severity="info" if paid.rose else worse(paid.known and gone, True),
        headline=f"the entropy fell from {first:.3g} to {last:.3g} nats per token{paid.said}",
        meaning="The policy repeats what it is already sure of. With a rising reward that is learning; without, "
        "responses of a group become the same and their advantages vanish.",
        fix="Nothing while the reward rises. Otherwise hold back the few tokens of largest covariance, raise the upper "
        "clip, or add an entropy bonus that tracks a target, from a checkpoint before the fall.",
        evidence=told(course, "entropy", found, logs=True),
        where=late(series),
        settings={} if paid.rose else settings("covariance_control"),
    )


def lengths_explode(course: Course) -> Iterator[Finding]:
    """Responses have surely doubled in length without a rising reward, or until many are cut."""
    series = course.finite("length")
    found = levels(series, logs=True)
    if series is None or found is None or not found.rose(math.log10(DOUBLED)):
        return
    first, last = 10**found.first, 10**found.last
    paid, cut = progress(course), levels(course.finite("truncated"))
    many = cut is not None and cut.last > CUT_MUCH and cut.rose()
    if (paid.rose and not many) or (not paid.known and not many and last < 3 * first):
        return
    yield Finding(
        name="lengths_explode",
        kind="training",
        severity=worse((many and not paid.rose) or paid.fell, True),
        headline=f"responses grew from {first:,.0f} to {last:,.0f} tokens, from step {found.changed} on"
        + (f", until {cut.last:.0%} are cut at the limit" if cut is not None and many else "")
        + paid.said,
        meaning="The policy writes on without being paid for it: it loops, pads, or has lost the end token. What is "
        "cut has no answer, so the reward goes too, and drift grows with every token.",
        fix="Read some of the longest. Check that the end token is in the mask and is trained on, that losses are not "
        "divided so that length costs nothing (sequence means dilute a long wrong answer), and penalise overlong "
        "responses softly before the limit.",
        evidence=told(course, "length", found, logs=True),
        where=late(series),
    )


def lengths_collapse(course: Course) -> Iterator[Finding]:
    """Responses have surely shrunk to half without a rising reward."""
    series = course.finite("length")
    found = levels(series, logs=True)
    if series is None or found is None or not found.fell(math.log10(DOUBLED)):
        return
    first, last = 10**found.first, 10**found.last
    paid = progress(course)
    if paid.rose or (not paid.known and last > 0.25 * first):
        return
    yield Finding(
        name="lengths_collapse",
        kind="training",
        severity=worse(paid.fell, True),
        headline=f"responses shrank from {first:,.0f} to {last:,.0f} tokens, from step {found.changed} on{paid.said}",
        meaning="The policy gives up thinking, tools or the task itself: an end token that is always safe, a penalty "
        "on length or failure that outweighs the reward for trying.",
        fix="Read some of the shortest. Compare the reward of an empty answer with that of a wrong one, and lower "
        "penalties on length, format and failed tool calls until trying pays.",
        evidence=told(course, "length", found, logs=True),
        where=late(series),
    )


def truncation(course: Course) -> Iterator[Finding]:
    """The share of responses cut at the limit has surely risen by CUT_RISE to CUT_MUCH, or is CUT_HALF throughout."""
    series = course.finite("truncated")
    if series is None or len(series) < FEWEST:
        return
    found, paid = levels(series), progress(course)
    level, lately = float(np.median(series.values)), float(series.values[-3:].mean())
    rose = found is not None and found.last >= CUT_MUCH and found.rose(CUT_RISE)
    if not rose and (level < CUT_HALF or lately < CUT_HALF):
        return
    everything = level >= CUT_ALL and lately >= CUT_ALL
    same = _paid_alike(course) if everything else ""
    last = found.last if rose and found is not None else lately
    if rose and found is not None:
        head = f"the share of responses cut at the length limit rose from {found.first:.0%} to {last:.0%}, from step "
        head += f"{found.changed} on{paid.said}"
    else:
        head = "every response is" if everything else f"{level:.0%} of the responses are"
        head += f" cut by the length limit{same}" + (": nothing is learnt" if same else "")
    grave = bool(same) or ((last >= CUT_NEARLY_ALL or paid.fell) and not paid.rose)
    yield Finding(
        name="truncation",
        kind="training",
        severity="critical" if grave else "warning" if not (paid.rose and last < CUT_HALF) else "info",
        headline=head,
        meaning="A response that is cut has no answer: it is paid as wrong whatever it was about to say, and its end "
        "teaches the policy nothing about ending.",
        fix="Raise the limit if such responses are still at work, mask them out of the loss if they are not, and see "
        "whether they loop. A chat template without its end token, or a stop token that the engine does not know, "
        "cuts every response.",
        evidence=told(course, "truncated", found) if found is not None else {"cut": level},
        where=late(series),
    )


def _paid_alike(course: Course) -> str:
    """What the rewards of cut responses are, where they are all the same."""
    reward, spread = course.finite("reward"), course.finite("reward_std")
    if reward is None or np.ptp(reward.values) > 1e-9 or (spread is not None and spread.values.max() > 1e-9):
        return ""
    return f", and every reward is {reward.values[0]:.3g}"


CHECKS = (
    CourseCheck("truncation", "Do responses end by themselves?", ("truncated",), truncation),
    CourseCheck("lengths_explode", "Do responses grow only as they are paid for it?", ("length",), lengths_explode),
    CourseCheck("lengths_collapse", "Do responses stay as long as the task needs?", ("length",), lengths_collapse),
    CourseCheck("entropy_explodes", "Does the policy stay as sure as it was?", ("entropy",), entropy_explodes),
    CourseCheck("entropy_collapse", "Does the policy still explore?", ("entropy",), entropy_collapse),
)

"""The reward's course: fallen from where it was, flat from the start, or the same for every response."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from holdfast.audit.course import Course, Series
from holdfast.audit.judge.course.check import CourseCheck, late, told
from holdfast.audit.judge.finding import Finding
from holdfast.audit.measure.levels import Levels, levels

LOST = 0.1
"""Share of the reward's scale that a fall must exceed."""
GRAVE = 0.5
"""Share of the scale, or of what had been gained, whose loss is critical."""
FLAT, FLAT_STEPS = 0.02, 100
"""A rise surely below this share of the scale over this many steps is none."""
SOLVED = 0.9
EQUAL, ALL_EQUAL = 1e-9, 0.9
FEWEST = 3


def reward_falls(course: Course) -> Iterator[Finding]:
    """The last level is surely below the best one, by more than LOST of the scale (its size, or the rewards' spread).

    Critical where half of the scale or four fifths of the gain are gone.
    """
    series = course.finite("reward")
    found = levels(series)
    if series is None or found is None or not found.fell_from_peak():
        return
    fall, scale = found.peak - found.last, _scale(course, found)
    gained = found.peak - found.first
    if fall < LOST * scale:
        return
    grave = fall >= GRAVE * scale or (gained > found.needed * found.error and fall >= 0.8 * gained)
    yield Finding(
        name="reward_falls",
        kind="training",
        severity="critical" if grave else "warning",
        headline=f"the reward fell from {found.peak:.3g} at its best to {found.last:.3g} over the last fifth of the "
        f"steps (it began at {found.first:.3g}; the level changes at step {found.changed})",
        meaning="The policy unlearns what it had learnt, or is rewarded for something else than before. From a "
        "collapse runs seldom recover by themselves.",
        fix="Go back to the checkpoint before the fall and look at what moved first: entropy, length, the share of "
        "truncated responses, the mismatch of engine and trainer, the gradient norm. Read responses from before and "
        "after. A reward function or judge that failed looks the same: check its errors and timeouts.",
        evidence={**told(course, "reward", found), "best fifth": found.peak, "fall": fall},
        where=late(series),
    )


def reward_flat(course: Course) -> Iterator[Finding]:
    """Over FLAT_STEPS steps or more the rise is surely below FLAT of the scale; not where the task is solved."""
    series = course.finite("reward")
    found = levels(series)
    if series is None or found is None or len(series) < FLAT_STEPS or np.ptp(series.values) == 0:
        return
    scale = _scale(course, found)
    top = float(series.values.max())
    if (
        found.peak - found.first > LOST * scale
        or found.last - found.first + 3 * found.error > FLAT * scale
        or (found.first >= SOLVED * top and top >= SOLVED)
    ):
        return
    yield Finding(
        name="reward_flat",
        kind="training",
        severity="warning",
        headline=f"the reward has not risen in {len(series):,} steps ({found.first:.3g} at the start, "
        f"{found.last:.3g} now, surely less than {FLAT:.0%} more)",
        meaning="Nothing is learnt that pays: no useful signal reaches the weights, or they do not move.",
        fix="Look at the share of groups with equal rewards (prompts too hard or too easy have no advantage), the "
        "learning rate, the gradient norm and the share that clip and mask let through. Check on one prompt that "
        "advantages have the sign of the reward.",
        evidence=told(course, "reward", found),
        where=late(series),
    )


def rewards_equal(course: Course) -> Iterator[Finding]:
    """At nine steps of ten, or of the last third, no response is paid differently from another.

    Worth a word only where the reward is as high as any that was seen, and at least SOLVED: the task is solved.
    """
    reward = course.finite("reward")
    name, equal = _equal(course)
    if equal is None or len(equal) < FEWEST:
        return
    third = max(FEWEST, len(equal) // 3)
    always, lately = float(equal.values.mean()), float(equal.values[-third:].mean())
    if max(always, lately) < ALL_EQUAL or _cut_throughout(course):
        return
    level = None if reward is None else float(reward.values[-third:].mean())
    solved = level is not None and level >= SOLVED
    begins = int(equal.steps[0] if always >= ALL_EQUAL else equal.steps[-third])
    paid = "" if level is None else f" (mean {level:.3g})"
    what = "at every step all rewards" if always >= ALL_EQUAL else f"from step {begins} on all rewards"
    yield Finding(
        name="rewards_equal",
        kind="training",
        severity="info" if solved else "critical",
        headline=f"{what} are the same{paid}: {'the task is solved' if solved else 'nothing is learnt'}",
        meaning="Advantages compare a reward with those of its group. Where all are equal they are 0, and so is the "
        "policy's gradient: weights move by decay, KL and entropy terms only.",
        fix="Go on with harder prompts, or stop here."
        if solved
        else "Score some responses by hand: a parser, a timeout or a wrong field gives every response the same "
        "reward. If they are right, take easier prompts, more responses a prompt, or a reward with steps in it.",
        evidence={
            "steps or groups with equal rewards": always,
            "of the last third": lately,
            **({} if level is None else {"reward": level}),
            "told by": name,
        },
        where=late(equal),
    )


def _equal(course: Course) -> tuple[str, Series | None]:
    """By step the share of what has equal rewards: groups, or whole steps."""
    spread, groups, reward = course.finite("reward_std"), course.finite("equal_groups"), course.finite("reward")
    if spread is not None:
        return "reward_std", Series(spread.steps, (np.abs(spread.values) <= EQUAL).astype(float))
    if groups is not None:
        return "equal_groups", groups
    if reward is None or len(reward) < 5:
        return "reward", None
    same = np.abs(reward.values - np.append(reward.values[0], reward.values[:-1])) <= EQUAL
    return "reward", Series(reward.steps, same.astype(float))


def _cut_throughout(course: Course) -> bool:
    """Whether nearly every response is cut: the truncation is then the cause, and tells of the rewards."""
    cut = course.finite("truncated")
    return cut is not None and float(np.median(cut.values)) >= 0.95


def _scale(course: Course, found: Levels) -> float:
    """What a change of the reward is measured with: its size, or the spread within a step where that is more."""
    spread = course.finite("reward_std")
    within = 0.0 if spread is None else 0.5 * float(np.median(spread.values))
    return max(abs(found.peak), abs(found.last), abs(found.first), within, 1e-12)


_SPREAD = ("reward", "reward_std", "equal_groups")
CHECKS = (
    CourseCheck(
        "rewards_equal",
        "Are some responses paid more than others?",
        ("reward", "reward_std", "equal_groups"),
        rewards_equal,
    ),
    CourseCheck("reward_falls", "Is the reward as high as it was at its best?", ("reward",), reward_falls),
    CourseCheck("reward_flat", "Does the reward rise?", ("reward",), reward_flat),
)

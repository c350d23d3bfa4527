"""The update's numbers over the steps: mismatch of engine and trainer, KL, gradient, clip, learning rate, NaN."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from holdfast.audit.course import MISMATCH, VOCABULARY, Course
from holdfast.audit.judge.course.check import CourseCheck, late, progress, told, worse
from holdfast.audit.judge.finding import Finding, Where
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.levels import FEWEST_STEPS, levels, spikes

LIGHTS = {
    "mismatch_kl": (0.002, 0.015),
    "mismatch_abs_log": (0.03, 0.1),
    "mismatch_probs": (0.005, 0.01),
    "mismatch_ratio": (0.02, 0.05),
}
"""What others call normal at most, and high: the anchors of the checks of tokens; |ratio - 1| for a ratio."""
GROWTH = 3.0
FAR = 5.0
SPIKE, MANY, OFTEN = 10.0, 4, 0.03
CLIPPED, CLIPPED_MOST = 0.3, 0.6
KL_OLD, KL_REF = 0.1, 0.1
ENDED = 0.25
CORE = ("reward", "loss", "gradient_norm", "entropy")


def mismatch(course: Course) -> Iterator[Finding]:
    """Engine and trainer have surely moved apart by GROWTH beyond what is normal, or are farther apart than high.

    Critical where it grew to high, or is FAR times high. One finding, of the measure that is farthest above its high.
    """
    best: tuple[float, Finding] | None = None
    for name in MISMATCH:
        series = _distance(course, name)
        if series is None or len(series) < 3:
            continue
        normal, high = LIGHTS[name]
        grown = levels(series, logs=True)
        last = float(np.median(series.values[-max(3, len(series) // 5) :]))
        grew = grown is not None and last > normal and grown.rose(np.log10(GROWTH))
        jumped = len(series) >= FEWEST_STEPS and _jumps(series.values) and series.values[-1] > high
        if jumped and not grew:
            last = float(series.values[-2:].min())
        if not (grew or jumped or last > high):
            continue
        head = f"{VOCABULARY[name].partition(',')[0].partition(';')[0]}: {last:.3g}"
        if grew and grown is not None:
            head = f"engine and trainer move apart ({head}, {10**grown.first:.3g} at the start; from step "
            head += f"{grown.changed} on){progress(course).said}"
        elif jumped:
            head = f"engine and trainer jump apart at step {int(series.steps[-2])} ({head}, before it "
            head += f"{float(np.median(series.values[:-2])):.3g})"
        else:
            head = f"engine and trainer are far apart ({head}, and others call {high:g} high)"
        finding = Finding(
            name="mismatch",
            kind="drift",
            severity=worse(((grew or jumped) and last > high) or last > FAR * high, True),
            headline=head,
            meaning="The engine samples from another policy than the one that is trained. The gradient is then of "
            "something that was never sampled, and the error grows with length. Scalars tell that it is so, not where.",
            fix="Log tokens with both log-probabilities and audit those: they tell a wrong temperature, support, shift "
            "or stale weights from numerics. Until then mask what is far off.",
            evidence={**(told(course, name, grown, logs=True) if grown else {}), "now": last},
            where=late(series),
            settings=settings("sequence_mask"),
        )
        if best is None or last / high > best[0]:
            best = (last / high, finding)
    if best is not None:
        yield best[1]


def _distance(course: Course, name: str):
    series = course.finite(name)
    if series is None:
        return None
    apart = 1.0 if name == "mismatch_ratio" else 0.0
    past = None if series.past is None else np.abs(series.past - apart)
    return replace(series, values=np.abs(series.values - apart), past=past)


def _jumps(values: np.ndarray) -> bool:
    """Whether the last two values are FAR times as large as nearly all before them."""
    before = values[:-2]
    return bool(values[-2:].min() > FAR * np.quantile(before, 0.95) and values[-2:].min() > FAR * np.median(before))


def kl(course: Course) -> Iterator[Finding]:
    """KL of one update above KL_OLD, or KL to the reference that grew fivefold to KL_REF without a rising reward."""
    old, ref = course.finite("kl_old"), course.finite("kl_ref")
    if old is not None and len(old) >= FEWEST_STEPS:
        last = float(np.median(np.abs(old.values[-max(3, len(old) // 5) :])))
        if last > KL_OLD:
            yield _kl(course, "kl_old", f"one step moves the policy by {last:.3g} nats per token", last > FAR * KL_OLD)
    found, paid = levels(ref, logs=True), progress(course)
    if ref is None or found is None or paid.rose or not found.rose(np.log10(FAR)):
        return
    if 10**found.last > KL_REF:
        head = (
            f"the KL to the reference policy grew from {10**found.first:.3g} to {10**found.last:.3g} nats per token, "
        )
        yield _kl(course, "kl_ref", f"{head}from step {found.changed} on{paid.said}", paid.fell)


def _kl(course: Course, name: str, headline: str, grave: bool) -> Finding:
    return Finding(
        name="kl",
        kind="training",
        severity="critical" if grave else "warning",
        headline=headline,
        meaning="The policy leaves the region in which the update's first-order promise holds.",
        fix="Lower the learning rate or the number of updates a batch, tighten the clip or the mask, and go back to a "
        "checkpoint before it grew.",
        evidence={"logged as": course.series[name].named} if course.series[name].named else {},
        where=late(course.series[name]),
    )


def gradient(course: Course) -> Iterator[Finding]:
    """A norm of 0 at the last five steps, spikes of SPIKE times the neighbours, or a sure growth to FAR times.

    Spikes are MANY at least and at OFTEN of the steps: rarer ones are in most long runs.
    """
    series = course.finite("gradient_norm")
    if series is None or len(series) < 5:
        return
    if not series.values[-5:].any():
        yield _gradient(
            course,
            "the gradient is 0 at the last five steps: nothing is learnt",
            "critical",
            "Look at the rewards (equal within groups), the mask (all tokens rejected) and the learning rate.",
        )
        return
    high, found, paid = spikes(series, SPIKE), levels(series, logs=True), progress(course)
    if len(high) >= max(MANY, OFTEN * len(series)) and len(series) >= 3 * FEWEST_STEPS:
        named = ", ".join(map(str, high[:5].tolist())) + (", ..." if len(high) > 5 else "")
        worst = float(series.values.max())
        yield _gradient(
            course,
            f"the gradient norm spikes at {len(high)} steps ({named}), up to {worst:.3g}, more than {SPIKE:g} times "
            "its neighbours",
            "warning",
            "Look at the batches of those steps: a few tokens with extreme ratios, one very long response, a reward "
            "out of range. Mask by sequence, and clip the norm at what is usual.",
            Where(steps=tuple(high[:10].tolist())),
        )
    elif found is not None and found.rose(np.log10(FAR)) and not paid.rose:
        yield _gradient(
            course,
            f"the gradient norm grew from {10**found.first:.3g} to {10**found.last:.3g}, from step {found.changed} on"
            f"{paid.said}",
            "critical" if paid.fell else "warning",
            "Lower the learning rate, clip the norm, and go back to a checkpoint before it grew.",
        )


def _gradient(course: Course, headline: str, severity, fix: str, where: Where | None = None) -> Finding:
    return Finding(
        name="gradient",
        kind="training",
        severity=severity,
        headline=headline,
        meaning="A few steps with huge gradients undo many good ones; a growing norm is often the first sign of a run "
        "that will fall apart; one of 0 is no training at all.",
        fix=fix,
        evidence={"logged as": course.series["gradient_norm"].named} if course.series["gradient_norm"].named else {},
        where=where or late(course.series["gradient_norm"]),
    )


def clip_share(course: Course) -> Iterator[Finding]:
    """CLIPPED of the tokens or more get no gradient over the last fifth of the steps."""
    series = course.finite("clip_share")
    if series is None or len(series) < 3:
        return
    last = float(np.median(series.values[-max(3, len(series) // 5) :]))
    if last < CLIPPED:
        return
    yield Finding(
        name="clip_share",
        kind="training",
        severity="critical" if last > CLIPPED_MOST else "warning",
        headline=f"clip or mask take {last:.0%} of the tokens out of the gradient",
        meaning="What is clipped teaches nothing. So large a share means that the policy moves too far in a step, or "
        "that engine and trainer are apart.",
        fix="Lower the learning rate or the number of updates a batch, and look at the mismatch of engine and trainer.",
        evidence={"now": last, **({"logged as": series.named} if series.named else {})},
        where=late(series),
    )


def learning_rate(course: Course) -> Iterator[Finding]:
    """A learning rate of 0 at every step, or for the last quarter of the steps and more."""
    series = course.finite("learning_rate")
    if series is None or len(series) < 3:
        return
    zero = series.values == 0
    ended = len(series) - (int(np.flatnonzero(~zero)[-1]) + 1 if not zero.all() else 0)
    if not zero.all() and (ended < max(5, ENDED * len(series))):
        return
    begins = int(series.steps[len(series) - ended])
    yield Finding(
        name="learning_rate",
        kind="training",
        severity="critical" if zero.all() else "warning",
        headline="the learning rate is 0 at every step" if zero.all() else f"the learning rate is 0 from step {begins}",
        meaning="The weights do not move.",
        fix="Look at the scheduler: its number of steps counts optimiser steps, and an end before the run's end leaves "
        "0; a rate printed as 0 may also be one that bfloat16 or the log rounds away.",
        evidence={"logged as": series.named} if series.named else {},
        where=late(series),
    )


def not_finite(course: Course) -> Iterator[Finding]:
    """NaN or infinity among reward, loss, gradient norm or entropy; critical where it lasts to the end of the log.

    A rare infinite gradient norm is what a loss scaler skips: a single one, or one in a hundred steps, is passed over.
    """
    said, grave, steps = [], False, []
    for name in CORE:
        series = course.series.get(name)
        if series is None or len(series) < 1:
            continue
        bad = ~np.isfinite(series.values)
        rare = name == "gradient_norm" and bad.sum() <= max(1, 0.01 * len(bad)) and not bad[-1]
        if rare or not bad.any():
            continue
        at = series.steps[bad]
        steps += at[:5].tolist()
        grave = grave or bool(bad[-3:].all())
        said.append(f"{name} at {len(at)} of {len(series)} steps, first at step {int(at[0])}")
    if said:
        yield Finding(
            name="not_finite",
            kind="training",
            severity="critical" if grave else "warning",
            headline=f"NaN or infinity in {'; '.join(said)}",
            meaning="One NaN in a gradient makes every weight NaN; from then on the run writes noise.",
            fix="Go back to a checkpoint before the first of them. Look for responses without tokens, groups of one "
            "(a standard deviation of one value), log-probabilities of -infinity and overflow in float16.",
            where=Where(steps=tuple(sorted(set(steps))[:10])),
        )


CHECKS = (
    CourseCheck("not_finite", "Is every number a number?", CORE, not_finite),
    CourseCheck("mismatch", "Do engine and trainer stay close?", MISMATCH, mismatch),
    CourseCheck("kl", "Does the policy move in small steps?", ("kl_old", "kl_ref"), kl),
    CourseCheck("gradient", "Is the gradient's size steady?", ("gradient_norm",), gradient),
    CourseCheck("clip_share", "Does most of what was sampled get a gradient?", ("clip_share",), clip_share),
    CourseCheck("learning_rate", "Do the weights move?", ("learning_rate",), learning_rate),
)

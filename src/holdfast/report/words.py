"""The verdict of a run in plain words, made only from what was measured."""

from __future__ import annotations

import math
from typing import TypeGuard

from holdfast.report.charts.scales import number
from holdfast.report.learning import clearly_lower, held_out, progress, zero_or_one
from holdfast.report.metrics import Metrics, is_number
from holdfast.report.page import Markup, element, join


def percent(share: float | None) -> str:
    r"""A share as a percentage.

    >>> percent(0.27), percent(0.004), percent(None)
    ('27\xa0%', '0.4\xa0%', '–')
    """
    return "–" if share is None else f"{number(100 * share, 3 if 0.995 < share < 1 else 2)}\N{NO-BREAK SPACE}%"


def headline(metrics: Metrics) -> Markup:
    """Started at, ended at, what drifted, what was masked, what the bounds say; silent on what was not measured."""
    if not metrics.rows:
        return Markup("No training step was completed, so there is nothing to judge.")
    parts = (_learned(metrics), _drifted(metrics), _masked(metrics), _length(metrics), _bounded(metrics))
    return join((p for p in parts if p), " ")


def _strong(text: str) -> Markup:
    return element("strong", text)


def _learned(metrics: Metrics) -> Markup | str:
    found = progress(metrics)
    steps = sum(1 for row in metrics.rows if row["step"] > 0) or len(metrics.rows)
    took = f"in {steps} step{'s' if steps != 1 else ''}"
    if found is None:
        return f"{steps} step{'s' if steps != 1 else ''} ran; rewards were not measured at a start and an end."
    start, end = _strong(number(found.start)), _strong(number(found.end))
    if found.change == 0:
        return join((found.name, " is at ", end, f", where it started, after {steps} step{'s' if steps != 1 else ''}."))
    if found.clear is None:
        return join((found.name, " went from ", start, " to ", end, f" {took}; its standard error is not known."))
    error = f"{found.change:+.2g}, standard error {number(found.error, 2)}"
    if not found.clear:
        unclear = "no more than chance explains, so learning is not shown."
        return join((found.name, " went from ", start, " to ", end, f" {took} ({error}): {unclear}"))
    verb = "rose" if found.change > 0 else "fell"
    return join((found.name, f" {verb} from ", start, " to ", end, f" {took} ({error}).", _right(metrics)))


def _right(metrics: Metrics) -> str:
    """Accuracy beside the reward, where rewards are 0 or 1."""
    values = held_out(metrics)[1]
    if len(values) < 2 or not zero_or_one(metrics):
        return ""
    said = (
        f" Rewards are 0 or 1: {percent(values[0])} of the sampled answers were right at first, {percent(values[-1])}"
    )
    return f"{said} at the end."


def _drifted(metrics: Metrics) -> Markup | str:
    mean, worst = metrics.mean("kl_exact_mean"), metrics.highest("kl_exact_max")
    unit = "nats of exact KL per token"
    if mean is None or worst is None:
        mean, worst, unit = metrics.mean("abs_log_ratio_mean"), metrics.highest("abs_log_ratio_max"), "in |log ratio|"
    if mean is None or worst is None:
        return "Drift between engine and trainer was not measured."
    at = f" (step {worst[0]})."
    said = ("Engine and trainer drifted apart by ", _strong(number(mean, 2)), f" {unit} on average and by ")
    return join((*said, _strong(number(worst[1], 2)), " at the worst token", at))


def _masked(metrics: Metrics) -> Markup | str:
    mean, worst = metrics.mean("masked_sequences"), metrics.highest("masked_sequences")
    if mean is None or worst is None:
        return "What the trust region masked was not recorded."
    tokens = metrics.mean("masked_tokens")
    if worst[1] == 0:
        if tokens:
            return join(("No whole sequence was masked, but ", _strong(percent(tokens)), " of the tokens were."))
        return "Nothing was masked." if tokens is not None else "No whole sequence was masked."
    said = ("The trust region masked ", _strong(percent(mean)), " of the sequences")
    if worst[1] >= 1:
        lost = sum(1 for v in metrics.series("masked_sequences")[1] if v >= 1)
        steps = f"{lost} step{'s' if lost > 1 else ''}"
        return join((*said, f"; at {steps} it masked all of them and nothing was learned there."))
    return join((*said, f", at most {percent(worst[1])} (step {worst[0]})."))


def masked_by_length(metrics: Metrics) -> list[tuple[int, list[float | None]]]:
    """Steps and the share masked in each quarter of length, shortest first; None for a quarter without a response.

    Runs that did not count the responses recorded 0 for quarters that were empty since their edges coincide, and for
    the last quarter where it was empty too; a 0 there beside an empty third quarter may be either and is left out.
    """
    edges = {step: values for step, values in metrics.lists("length_quartiles") if len(values) == 3}
    counted = {step for step, values in metrics.lists("length_counts") if len(values) == 4}
    found = []
    for step, values in metrics.lists("masked_by_length"):
        if len(values) == 4:
            first, second, third = (None, None, None) if step in counted else edges.get(step, (None, None, None))
            empty = [False, first is not None and first == second, second is not None and second == third]
            empty.append(empty[2] and values[3] == 0)
            found.append((step, [None if gone else v for gone, v in zip(empty, values, strict=True)]))
    return found


def responses_by_length(metrics: Metrics) -> list[int] | None:
    """How many responses each quarter of length held over the run; None where they were not counted."""
    counts = [values for _, values in metrics.lists("length_counts") if len(values) == 4 and None not in values]
    return [int(sum(v or 0 for v in column)) for column in zip(*counts, strict=True)] if counts else None


def acceptance_by_length(metrics: Metrics) -> list[float | None] | None:
    """Share of the sequences accepted in each quarter of length, shortest first.

    Over the run's sequences where they were counted, else the mean over steps. None for a quarter that never held a
    response; None altogether where nothing was measured.
    """
    counts = {step: values for step, values in metrics.lists("length_counts") if len(values) == 4}
    kept, seen = [0.0] * 4, [0.0] * 4
    for step, values in masked_by_length(metrics):
        weights = counts.get(step, [1.0] * 4)
        for quarter, (value, weight) in enumerate(zip(values, weights, strict=True)):
            if value is not None and weight:
                kept[quarter] += weight * (1 - value)
                seen[quarter] += weight
    return [k / n if n else None for k, n in zip(kept, seen, strict=True)] if any(seen) else None


def _length(metrics: Metrics) -> str:
    """Said only where both ends hold a twentieth of the responses, or were there at half the steps.

    The difference must exceed two standard errors; where responses were not counted, a step is taken as one of each.
    """
    accepted, counts = acceptance_by_length(metrics), responses_by_length(metrics)
    if accepted is None or accepted[0] is None or accepted[3] is None or accepted[0] - accepted[3] < 0.1:
        return ""
    rows = [values for _, values in masked_by_length(metrics)]
    counts = counts or [sum(values[q] is not None for values in rows) for q in range(4)]
    least = sum(counts) / 20 if responses_by_length(metrics) else len(rows) / 2
    if min(counts[0], counts[3]) < least:
        return ""
    if not clearly_lower(accepted[3], counts[3], accepted[0], counts[0]):
        return ""
    short, long = percent(accepted[0]), percent(accepted[3])
    return f"Acceptance falls with length: {short} of the shortest quarter, {long} of the longest."


def _bounded(metrics: Metrics) -> Markup | str:
    found = last_bounds(metrics)
    if not found:
        return ""
    name, value = found[0]
    if value > 1:
        tightest = f"the tightest is {number(value, 2)} ({name})"
        return f"No error bound is below 1 at the end, so none guarantees anything; {tightest}."
    value_text = _strong(number(value, 2))
    return join(
        ("Estimated on its last rollouts, the tightest bound on what the drift can cost is ", value_text, f" ({name}).")
    )


def is_bound(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number or infinite."""
    return is_number(value) or value == math.inf


def last_bounds(metrics: Metrics) -> list[tuple[str, float]]:
    """Every bound of the last step that has any, tightest first; `unified`, their minimum, only where it is alone.

    A bound may be infinite: it then says nothing, and the page says so.
    """
    steps = metrics.mappings("bounds")
    values = steps[-1][1] if steps else {}
    known = [(name, float(v)) for name, v in values.items() if is_bound(v) and name != "unified"]
    if not known and is_bound(unified := values.get("unified")):
        known = [(str(values.get("unified_name", "unified")), float(unified))]
    return sorted(known, key=lambda pair: pair[1])

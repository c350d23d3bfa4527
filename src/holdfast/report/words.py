"""The verdict of a run in plain words, made only from what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from holdfast.report.charts.scales import number
from holdfast.report.metrics import Metrics, is_number
from holdfast.report.page import Markup, element, join

_ACCURACY = (
    ("eval_accuracy", "Sampled accuracy on held-out problems"),
    ("accuracy", "Sampled accuracy on the training prompts"),
    ("reward_mean", "Mean reward"),
)


def percent(share: float | None) -> str:
    r"""A share as a percentage.

    >>> percent(0.27), percent(0.004), percent(None)
    ('27\xa0%', '0.4\xa0%', '–')
    """
    return "–" if share is None else f"{number(100 * share, 3 if 0.995 < share < 1 else 2)}\N{NO-BREAK SPACE}%"


def progress(metrics: Metrics, summary: Mapping[str, Any]) -> tuple[str, float, float] | None:
    """What was learned: (name, at the start, at the end) of the best measure there is; None where there is none."""
    for key, name in _ACCURACY:
        start, end = metrics.first(key), metrics.last(key)
        if key == "eval_accuracy":
            start = summary["start_accuracy"] if is_number(summary.get("start_accuracy")) else start
            end = summary["final_accuracy"] if is_number(summary.get("final_accuracy")) else end
        if start is not None and end is not None:
            return name, float(start), float(end)
    return None


def headline(metrics: Metrics, summary: Mapping[str, Any]) -> Markup:
    """Started at, ended at, what drifted, what was masked, what the bounds say; silent on what was not measured."""
    if not metrics.rows:
        return Markup("No training step was completed, so there is nothing to judge.")
    parts = (_learned(metrics, summary), _drifted(metrics), _masked(metrics), _length(metrics), _bounded(metrics))
    return join((p for p in parts if p), " ")


def _strong(text: str) -> Markup:
    return element("strong", text)


def _learned(metrics: Metrics, summary: Mapping[str, Any]) -> Markup | str:
    found = progress(metrics, summary)
    steps = sum(1 for row in metrics.rows if row["step"] > 0) or len(metrics.rows)
    if found is None:
        return f"{steps} steps ran; neither accuracy nor reward was measured."
    name, start, end = found
    write = number if name == "Mean reward" else percent
    took = f"in {steps} step{'s' if steps != 1 else ''}."
    if abs(end - start) < 0.02:
        return join((name, " stayed at about ", _strong(write(end)), " ", took, " Nothing was learned."))
    verb = "rose" if end > start else "fell"
    return join((name, f" {verb} from ", _strong(write(start)), " to ", _strong(write(end)), " ", took))


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
        return "Nothing was masked."
    said = ("The trust region masked ", _strong(percent(mean)), " of the sequences")
    if worst[1] >= 1:
        lost = sum(1 for v in metrics.series("masked_sequences")[1] if v >= 1)
        steps = f"{lost} step{'s' if lost > 1 else ''}"
        return join((*said, f"; at {steps} it masked all of them and nothing was learned: the threshold is too tight."))
    return join((*said, f", at most {percent(worst[1])} (step {worst[0]})."))


def acceptance_by_length(metrics: Metrics) -> list[float] | None:
    """Mean share of sequences accepted in each quarter of length, shortest first; None where not measured."""
    rows = [values for _, values in metrics.lists("masked_by_length") if len(values) == 4]
    columns = [[v for v in column if v is not None] for column in zip(*rows, strict=True)]
    if not columns or not all(columns):
        return None
    return [1 - sum(c) / len(c) for c in columns]


def _length(metrics: Metrics) -> str:
    accepted = acceptance_by_length(metrics)
    if accepted is None or max(accepted) - min(accepted) < 0.1 or accepted[0] <= accepted[3]:
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

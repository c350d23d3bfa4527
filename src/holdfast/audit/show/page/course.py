"""The course of a run on the page: each number over the steps, and what to log to know more."""

from __future__ import annotations

import math

from holdfast.audit.course import VOCABULARY, Course, Series
from holdfast.audit.judge.auditor import Audit
from holdfast.audit.judge.verdict import sentence
from holdfast.audit.show.page.findings import setting
from holdfast.report.charts.plots import Series as Line
from holdfast.report.charts.plots import line_chart
from holdfast.report.page import Markup, columns, element, figure, join, paragraph, section

MOST_POINTS = 300
"""Points of a curve: of a longer series each is the mean of neighbours."""
FEWEST = 3

TITLES = {
    "kl_ref": "KL to the reference",
    "kl_old": "KL of one update",
    "mismatch_kl": "KL of engine and trainer",
    "mismatch_abs_log": "|log ratio| of engine and trainer",
    "mismatch_probs": "difference of probabilities",
    "mismatch_ratio": "ratio of trainer and engine",
    "length_max": "longest response",
    "equal_groups": "groups of equal rewards",
    "reward_std": "spread of the rewards",
}
"""Of numbers whose names say little to a reader."""


def course_section(course: Course) -> Markup:
    """A figure per number that is known of enough steps; nothing where there is none."""
    known = [(name, series) for name in VOCABULARY if (series := course.finite(name)) is not None]
    figures = [_figure(name, series) for name, series in known if len(series) >= FEWEST]
    if not figures:
        return Markup()
    lead = "The same run by step. Look for what moved first: the cause usually moves before the reward does."
    return section("The course of the run", columns(*figures), lead=lead)


def _figure(name: str, series: Series) -> Markup:
    width = math.ceil(len(series) / MOST_POINTS)
    steps, values = series.steps[::width].tolist(), []
    for start in range(0, len(series), width):
        values.append(float(series.values[start : start + width].mean()))
    said = TITLES.get(name, name.replace("_", " "))
    chart = line_chart([Line(said, steps, values)], title=sentence(said), x_label="step", y_label=said)
    logged = f"; logged as {series.named}" if series.named else ""
    return figure(chart, f"{sentence(VOCABULARY[name])}{logged}.")


def more_section(audit: Audit) -> Markup:
    """The lines to set, each with what it gives."""
    if not audit.more:
        return Markup()
    told = [element("div", paragraph(sentence(what), ":"), *setting(text)) for what, text in audit.more]
    return section("To know more, log this", join(told))

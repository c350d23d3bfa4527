"""The page of a study with charts: every seed a dot, curves over factors and steps, made from its results alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from holdfast.report.charts.bars import dot_chart
from holdfast.report.charts.frame import Reference
from holdfast.report.charts.plots import Series, line_chart
from holdfast.report.metrics import is_number
from holdfast.report.page import (
    Markup,
    columns,
    element,
    facts,
    figure,
    folded,
    join,
    page,
    paragraph,
    preformatted,
    section,
    table,
)
from holdfast.study.definition import Factor, Study, Value
from holdfast.study.judge import (
    Table,
    account,
    chance_note,
    claim_verdict,
    dropped,
    failures,
    judge,
    made_with,
    outcome_table,
    place,
    seeds_of,
    tuning_table,
)
from holdfast.study.plan import cells
from holdfast.study.results import number_title, reported, values_of
from holdfast.study.statistics import interval

_MOST_LINES = 8


def study_page(study: Study, results: Mapping[str, Any], name: str) -> Markup:
    """The whole page."""
    known = [("claim", study.claim), ("refuted by", study.refuted_by), ("seeds", seeds_of(study))]
    known += [("runs", account(results)), ("made with", made_with(results)), ("settings hash", results["hash"])]
    return page(
        study.title,
        section("The claim", facts(known), paragraph(study.about) if study.about else ""),
        *_over_factors(study, results),
        *(_cell(study, results, cell) for cell in cells(study)),
        _comparisons(study, results),
        *_rest(study, results),
        kicker=f"Holdfast · study {name}",
        verdict=element("strong", claim_verdict(judge(study, results))),
        footer=f"Written by Holdfast from {name}.json. This page loads nothing.",
    )


def _cell(study: Study, results: Mapping[str, Any], cell: Mapping[str, Value]) -> Markup:
    headers, rows = outcome_table(study, results, cell)
    if not rows:
        return Markup()
    names = [row[0] for row in rows]
    starts = [run["start"] for name in names for run in reported(results, name, cell) if is_number(run.get("start"))]
    dots = dot_chart(
        names,
        [list(values_of(results, name, cell).values()) for name in names],
        title=number_title(study.metric),
        x_label=study.metric.title,
        references=[Reference(statistics.fmean(starts), "start")] if starts else [],
    )
    lines = [line for name in names[:_MOST_LINES] if (line := _curve(results, name, cell)) is not None]
    curves = (
        line_chart(lines, title="How they got there", x_label="step", y_label=study.metric.title) if lines else None
    )
    more = f" The first {_MOST_LINES} of the table are drawn." if len(names) > _MOST_LINES else ""
    return section(
        place(cell).capitalize(),
        figure(dots, "Every dot is a seed, the tick their mean.", full=True),
        figure(curves, f"Means over seeds.{more}", full=True) if curves else "",
        _listing((headers, rows), f"Results at {place(cell)}"),
    )


def _curve(results: Mapping[str, Any], name: str, cell: Mapping[str, Value]) -> Series | None:
    """The mean over seeds at each step that all of them measured."""
    curves = [
        dict(zip(run["curve"]["step"], run["curve"]["value"], strict=True))
        for run in reported(results, name, cell)
        if run.get("curve", {}).get("step")
    ]
    if not curves:
        return None
    steps = sorted(set.intersection(*map(set, curves)))
    return Series(name, steps, [statistics.fmean(curve[step] for curve in curves) for step in steps])


def _over_factors(study: Study, results: Mapping[str, Any]) -> list[Markup]:
    """For each factor of several numbers: the metric against it, the other factors at each of their values."""
    charts = []
    for factor in study.factor:
        if len(factor.values) < 2 or not all(is_number(value) for value in factor.values):
            continue
        others = {place({k: v for k, v in cell.items() if k != factor.name}): cell for cell in cells(study)}
        for where, cell in others.items():
            lines = [_line(results, found.name, factor, cell) for found in study.configuration]
            at = "" if where == "all runs" else f", {where}"
            kept = [line for line in lines if line.x]
            if kept:
                title = f"{study.metric.title} against {factor.name}{at}"
                charts.append(line_chart(kept, title=title, x_label=factor.name, y_label=study.metric.title))
    if not charts:
        return []
    note = "Means over seeds, bands are 95 % intervals where there are enough seeds."
    return [section("Where each breaks", *(figure(chart, note, full=True) for chart in charts))]


def _line(results: Mapping[str, Any], name: str, factor: Factor, cell: Mapping[str, Value]) -> Series:
    x, y, low, high = [], [], [], []
    for value in factor.values:
        found = interval(list(values_of(results, name, dict(cell) | {factor.name: value}).values()))
        if found.seeds and is_number(value):
            x.append(value)
            y.append(found.mean)
            low.append(found.mean if found.low is None else found.low)
            high.append(found.mean if found.high is None else found.high)
    return Series(name, x, y, low, high)


def _comparisons(study: Study, results: Mapping[str, Any]) -> Markup:
    judged = judge(study, results)
    rows = [[place(row.cell), "yes" if row.claim else "", row.sentence] for row in judged]
    lead = f"First minus second on shared seeds. {chance_note(judged)}"
    return section(
        "Comparisons", _listing((["where", "of the claim", "what was found"], rows), "Comparisons"), lead=lead
    )


def _rest(study: Study, results: Mapping[str, Any]) -> list[Markup]:
    found = []
    tried = tuning_table(study, results)
    if tried[1]:
        found.append(section("Settings chosen", _listing(tried, "Settings tried")))
    lists = [("Runs that broke", failures(results)), ("Runs no longer planned", dropped(results))]
    blocks = [folded(f"{heading} ({len(lines)})", preformatted("\n".join(lines))) for heading, lines in lists if lines]
    if blocks:
        found.append(section("Other runs", columns(*blocks)))
    return found


def _listing(content: Table, label: str) -> Markup:
    headers, rows = content
    return table(headers, [[join([cell]) for cell in row] for row in rows], label=label)

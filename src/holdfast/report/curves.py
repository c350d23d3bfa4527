"""Curves of everything that a run measured, of one run or of several over each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from holdfast.report.catalog import GROUPS, METRICS, metric_of, scalars
from holdfast.report.charts.plots import Series, live_chart
from holdfast.report.charts.scales import number
from holdfast.report.charts.svg import escape
from holdfast.report.metrics import Metrics, step_of
from holdfast.report.page import Markup, element, folded, paragraph, section, table

_LOGARITHMIC = ("drift", "bounds")
MOST_NUMBERS = 60_000
"""Points of all curves together: about half a megabyte."""

Curve = tuple[list[int], list[float]]


def curves(runs: Mapping[str, Metrics], *, unfolded: Sequence[str] = (), lead: str = "") -> Markup:
    """A section with a curve for each number of metrics.jsonl, a line for each run; see `every_curve`."""
    return every_curve({name: series_of(metrics) for name, metrics in runs.items()}, unfolded=unfolded, lead=lead)


def every_curve(measured: Mapping[str, Mapping[str, Curve]], *, unfolded: Sequence[str] = (), lead: str = "") -> Markup:
    """A curve for each number with a line for each name that has it, by the catalogue's groups; nothing for nothing.

    `unfolded` groups are open from the start. The curves need the page's script; the table below them does not.
    """
    keys = sorted({key for found in measured.values() for key in found}, key=_place)
    if not keys:
        return Markup()
    most = max(60, MOST_NUMBERS // max(1, sum(len(found) for found in measured.values())))
    blocks = []
    for group, heading in GROUPS.items():
        figures = [_figure(key, measured, group, most) for key in keys if metric_of(key).group == group]
        if figures:
            count = element("span", f"{len(figures)} curve{'s' if len(figures) > 1 else ''}")
            opened = " open" if group in unfolded else ""
            grid = element("div", *figures, css="grid2")
            blocks.append(
                Markup(
                    f'<details class="curves"{opened}>{element("summary", heading, count)}{grid}</details>',
                )
            )
    said = lead or "Every number of metrics.jsonl."
    find = Markup(
        '<input class="find" type="search" placeholder="find a curve: reward, kl, length" aria-label="find a curve">'
    )
    return section(
        "All curves",
        find,
        *blocks,
        _ends(keys, measured),
        lead=f"{said} Drag to zoom, which all charts over steps follow; double-click for the whole range.",
    )


def series_of(metrics: Metrics) -> dict[str, Curve]:
    """Steps and values of every number of a run, by its name."""
    found: dict[str, Curve] = {}
    for row in metrics.rows:
        for key, value in scalars(row):
            steps, values = found.setdefault(key, ([], []))
            steps.append(step_of(row))
            values.append(value)
    return found


def _place(key: str) -> tuple[int, str]:
    known = metric_of(key)
    return METRICS.index(known) if known in METRICS else len(METRICS), key


def _figure(key: str, measured: Mapping[str, Mapping[str, Curve]], group: str, most: int) -> Markup:
    """A figure that only the page's script draws."""
    known = metric_of(key)
    lines = [Series(name, *found[key]) for name, found in measured.items() if key in found]
    values = [v for line in lines for v in line.y if isinstance(v, float)]
    log = group in _LOGARITHMIC and min(values) > 0 and max(values) > 20 * min(values)
    data = live_chart(lines, title=key, x_label="step", y_label=known.unit or "value", log_y=log, most=most)
    healthy = f" Healthy: {known.healthy}." if known.healthy else ""
    note = f"{known.meaning[:1].upper()}{known.meaning[1:]}.{healthy}" if known.meaning else ""
    head = element("h3", element("code", key))
    said = paragraph(note, css="caption") if note else ""
    return Markup(f'<figure class="plot extra" data-live="{escape(data)}">{head}{said}</figure>')


def _ends(keys: Sequence[str], measured: Mapping[str, Mapping[str, Curve]]) -> Markup:
    rows = []
    for key in keys:
        for name, found in measured.items():
            if key in found:
                steps, values = found[key]
                ends = (values[0], values[-1], min(values), max(values))
                own = (key, name) if len(measured) > 1 else (key,)
                rows.append((*own, f"{len(steps):,}", *(number(v) for v in ends)))
    headers = ("number", *(("run",) if len(measured) > 1 else ()), "steps", "first", "last", "lowest", "highest")
    listing = table(headers, rows, label="Every number", numeric=range(len(headers) - 5, len(headers)), sortable=True)
    return folded("The same as a table", listing)

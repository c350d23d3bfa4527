"""Charts as inline SVG, drawn in Python: no plotting library, no JavaScript needed, any width.

Every function returns an `Svg`: `.markup(width)` for a page, `.save("figure.svg")` for a file, with a text description
and the data behind it. Values that are None or NaN are gaps, never zeros; on a logarithmic axis what is not positive
is a gap too.

>>> ppo = Series("ppo", [0, 1, 2], [0.3, 0.5, 0.7])
>>> chart = line_chart([ppo], title="Accuracy", x_label="step", y_label="accuracy")
>>> chart.markup().startswith("<svg")
True
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from holdfast.errors import DataError
from holdfast.report.charts.frame import (
    FOOT,
    Axes,
    Reference,
    Values,
    dot,
    draw_frame,
    draw_legend,
    draw_rules,
    drawable,
    floats,
)
from holdfast.report.charts.live import MOST_LIVE, live_data
from holdfast.report.charts.scales import Number, Scale, number, scale_of
from holdfast.report.charts.svg import (
    Box,
    Drawing,
    Row,
    Svg,
    label,
    series_class,
    shorten,
    spread,
    tag,
    text_width,
)

MOST_POINTS = 240


@dataclass(frozen=True)
class Series:
    """One named line or cloud of points; `low` and `high` draw an uncertainty band around a line."""

    name: str
    x: Values
    y: Values
    low: Values | None = None
    high: Values | None = None


@dataclass(frozen=True)
class _Points:
    """A series as plain lists of equal length; NaN is a gap."""

    name: str
    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]

    @property
    def banded(self) -> bool:
        return any(math.isfinite(v) for v in self.low)


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    references: Sequence[Reference] = (),
    y_range: tuple[Number, Number] | None = None,
) -> Svg:
    """Lines over a shared axis, named at their right end, with a band where a series has `low` and `high`.

    A long series keeps at most about 240 points, extremes kept; the description says so. `y_range` is held inside
    the vertical scale. Raises DataError for series of unequal lengths.
    """
    full = [_points(s) for s in series]
    points = _thin(full, MOST_POINTS)
    axes = _axes(points, x_label, y_label, (log_x, log_y), references, y_range, tight_x=True)
    rows = _line_rows(points, axes)
    kept, total = max((len(p.x) for p in points), default=0), max((len(p.x) for p in full), default=0)
    note = f"{kept} of {total} points are drawn, minima and maxima among them." if kept < total else ""

    def layout(width: float) -> Drawing:
        named = len(points) > 1 or bool(points and points[0].banded)
        direct = named and max(text_width(p.name) for p in points) + 18 <= 0.26 * width
        legend, legend_height = draw_legend([p.name for p in points], width) if named and not direct else ("", 0.0)
        ends = max(text_width(p.name) for p in points) + 18 if direct else 12.0
        frame, box = draw_frame(axes, width, legend_height, ends)
        lines = "".join(_line(p, i, axes, box) for i, p in enumerate(points))
        names = _end_labels(points, axes, box, width) if direct else ""
        return Drawing(legend + frame + lines + draw_rules(axes, box) + names, box.bottom + FOOT, box)

    headers = (x_label, *(name for p in points for name in _columns(p)))
    drawn_live = (
        ""
        if log_x
        else live_chart(
            series, title=title, x_label=x_label, y_label=y_label, log_y=log_y, references=references, y_range=y_range
        )
    )
    return Svg(title, _describe("Line chart", points, axes) + note, layout, headers, rows, note, drawn_live)


def live_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_y: bool = False,
    references: Sequence[Reference] = (),
    y_range: tuple[Number, Number] | None = None,
    most: int = MOST_LIVE,
) -> str:
    """The data of a line chart for the page's script, at most about `most` points of a series, extremes kept."""
    points = [_points(s) for s in series]
    kept = _thin(points, most * max(1, len(points)), most)
    named = {"title": title, "x_label": x_label, "y_label": y_label, "log_y": log_y}
    return live_data(kept, **named, references=references, y_range=y_range)


def scatter_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    references: Sequence[Reference] = (),
) -> Svg:
    """Points in the plane, one colour per series. Raises DataError for series of unequal lengths."""
    points = [_points(s) for s in series]
    axes = _axes(points, x_label, y_label, (log_x, log_y), references, None)
    rows = tuple(
        Row((p.name, number(a), number(b)), axes.x.fraction(a), 1 - axes.y.fraction(b))
        for p in points
        for a, b in zip(p.x, p.y, strict=True)
        if drawable(a, axes.x) and drawable(b, axes.y)
    )

    def layout(width: float) -> Drawing:
        legend, height = draw_legend([p.name for p in points], width, dots=True) if len(points) > 1 else ("", 0.0)
        frame, box = draw_frame(axes, width, height, 12.0)
        dots = "".join(
            dot(box.x(axes.x.fraction(a)), box.y(axes.y.fraction(b)), i, 3.2, 0.65)
            for i, p in enumerate(points)
            for a, b in zip(p.x, p.y, strict=True)
            if drawable(a, axes.x) and drawable(b, axes.y)
        )
        return Drawing(legend + frame + dots + draw_rules(axes, box), box.bottom + FOOT, box)

    return Svg(title, _describe("Scatter plot", points, axes), layout, ("series", x_label, y_label), rows)


def histogram(
    values: Values, *, title: str, x_label: str, bins: int = 30, log_x: bool = False, log_y: bool = False
) -> Svg:
    """Counts of values in equal bins (equal in logarithm if `log_x`); gaps are left out and counted in the note."""
    if bins < 1:
        raise DataError(f"bins={bins}: a histogram needs at least 1 bin")
    everything = floats(values)
    scale = scale_of(everything, log=log_x, tight=True)
    usable = [v for v in everything if drawable(v, scale)]
    counts = [0] * bins
    for value in usable:
        counts[min(bins - 1, int(scale.fraction(value) * bins))] += 1
    y = scale_of([1.0 if log_y else 0.0, *map(float, counts)], log=log_y)
    # A bin that holds one value has to show: the logarithmic axis starts just below 1.
    y = replace(y, low=0.6) if log_y else y
    axes = Axes(scale, y, x_label, "count", ())
    edge = [_inverse(scale, i / bins) for i in range(bins + 1)]
    rows = tuple(
        Row((f"{number(edge[i])} to {number(edge[i + 1])}", f"{c:,}"), (i + 0.5) / bins) for i, c in enumerate(counts)
    )
    left_out = len(everything) - len(usable)
    note = f"{left_out} of {len(everything)} values cannot be drawn (missing or not positive)." if left_out else ""

    def layout(width: float) -> Drawing:
        frame, box = draw_frame(axes, width, 0.0, 12.0)
        bars = "".join(
            tag("rect", class_="f1", x=box.x(i / bins) + 0.5, y=box.y(y.fraction(c)), height=height, width=step - 1)
            for i, c in enumerate(counts)
            if c and (height := box.bottom - box.y(y.fraction(c))) and (step := (box.right - box.left) / bins)
        )
        return Drawing(frame + bars, box.bottom + FOOT, box)

    ends = f"{number(min(usable, default=None))} to {number(max(usable, default=None))}"
    description = f"Histogram of {len(usable)} values of {x_label}, {ends}. {note}"
    return Svg(title, description, layout, (x_label, "count"), rows, note)


def _points(series: Series) -> _Points:
    x, y = floats(series.x), floats(series.y)
    low = floats(series.low) if series.low is not None else [math.nan] * len(x)
    high = floats(series.high) if series.high is not None else [math.nan] * len(x)
    if not len(x) == len(y) == len(low) == len(high):
        raise DataError(
            f"series {series.name!r}: x, y, low and high must have one length,"
            f" not {len(x)}, {len(y)}, {len(low)}, {len(high)}"
        )
    return _Points(series.name, x, y, low, high)


def _thin(series: list[_Points], most: int, whole: int = MOST_POINTS) -> list[_Points]:
    """Keep the lowest and highest y (and the ends) of equal stretches, so that no spike is lost.

    A series of at most `whole` points keeps them all.

    Series over the same x keep the same rows, so that every row of the data has a value of each.
    """
    share = max(40, most // max(1, len(series)))
    kept = [_extremes(p.y, share, whole) for p in series]
    if all(p.x == series[0].x for p in series):
        kept = [sorted(set().union(*kept))] * len(series)
    return [
        _Points(p.name, *([v[i] for i in rows] for v in (p.x, p.y, p.low, p.high)))
        for p, rows in zip(series, kept, strict=True)
    ]


def _extremes(y: list[float], most: int, whole: int) -> list[int]:
    count = len(y)
    if count <= whole:
        return list(range(count))
    stretches, keep = most // 2 - 1, {0, count - 1}
    for k in range(stretches):
        stretch = [i for i in range(k * count // stretches, (k + 1) * count // stretches) if math.isfinite(y[i])]
        if stretch:
            keep |= {min(stretch, key=y.__getitem__), max(stretch, key=y.__getitem__)}
    return sorted(keep)


def _inverse(scale: Scale, share: float) -> float:
    if scale.log:
        return scale.low * (scale.high / scale.low) ** share
    return scale.low + share * (scale.high - scale.low)


def _axes(
    points: Sequence[_Points],
    x_label: str,
    y_label: str,
    log: tuple[bool, bool],
    references: Sequence[Reference],
    y_range: tuple[Number, Number] | None,
    tight_x: bool = False,
) -> Axes:
    xs = [v for p in points for v in p.x] + [float(r.value) for r in references if r.axis == "x"]
    ys = [v for p in points for v in (*p.y, *p.low, *p.high)] + [float(r.value) for r in references if r.axis == "y"]
    x, y = scale_of(xs, log=log[0], ticks=6, tight=tight_x), scale_of([*ys, *(y_range or ())], log=log[1])
    return Axes(x, y, x_label, y_label, tuple(references))


def _line(points: _Points, index: int, axes: Axes, box: Box) -> str:
    def at(x: float, y: float) -> str:
        return f"{box.x(axes.x.fraction(x)):.1f} {box.y(axes.y.fraction(y)):.1f}"

    parts, runs = [], _runs(points, axes)
    for run in runs:
        rows = [i for i in run if drawable(points.low[i], axes.y) and drawable(points.high[i], axes.y)]
        if len(rows) > 1:
            upper = "L".join(at(points.x[i], points.high[i]) for i in rows)
            lower = "L".join(at(points.x[i], points.low[i]) for i in reversed(rows))
            parts.append(tag("path", class_=f"band {series_class(index, 'f')}", d=f"M{upper}L{lower}Z"))
    path = "".join("M" + "L".join(at(points.x[i], points.y[i]) for i in run) for run in runs if len(run) > 1)
    if path:
        parts.append(tag("path", class_=f"curve {series_class(index, 'l')}", d=path))
    sparse = sum(map(len, runs)) <= 16
    parts += [
        dot(box.x(axes.x.fraction(points.x[i])), box.y(axes.y.fraction(points.y[i])), index, 2.4)
        for run in runs
        if sparse or len(run) == 1
        for i in run
    ]
    return "".join(parts)


def _runs(points: _Points, axes: Axes) -> list[list[int]]:
    """Stretches of consecutive drawable points."""
    runs: list[list[int]] = [[]]
    for i, (x, y) in enumerate(zip(points.x, points.y, strict=True)):
        if drawable(x, axes.x) and drawable(y, axes.y):
            runs[-1].append(i)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _end_labels(points: Sequence[_Points], axes: Axes, box: Box, width: float) -> str:
    ends = [
        (i, box.x(axes.x.fraction(p.x[run[-1]])), box.y(axes.y.fraction(p.y[run[-1]])))
        for i, p in enumerate(points)
        if (runs := _runs(p, axes)) and (run := runs[-1])
    ]
    heights = spread([y for _, _, y in ends], 14.0, box.top, box.bottom)
    parts = []
    for (i, _, _), y in zip(ends, heights, strict=True):
        parts.append(dot(box.right + 6, y, i, 3.0))
        parts.append(label(shorten(points[i].name, width - box.right - 14), box.right + 13, y + 4, "name", "start"))
    return "".join(parts)


def _columns(points: _Points) -> tuple[str, ...]:
    return (points.name, f"{points.name}: low", f"{points.name}: high") if points.banded else (points.name,)


def _line_rows(points: Sequence[_Points], axes: Axes) -> tuple[Row, ...]:
    """One row per x, with a column for every series (and its band)."""
    cells: dict[float, list[str]] = {}
    width = sum(len(_columns(p)) for p in points)
    offset = 0
    for p in points:
        for i, x in enumerate(p.x):
            if drawable(x, axes.x):
                row = cells.setdefault(x, ["–"] * width)
                values = (p.y[i], p.low[i], p.high[i]) if p.banded else (p.y[i],)
                row[offset : offset + len(values)] = [number(v) for v in values]
        offset += len(_columns(p))
    return tuple(Row((number(x, 6), *cells[x]), axes.x.fraction(x)) for x in sorted(cells))


def _describe(kind: str, points: Sequence[_Points], axes: Axes) -> str:
    parts = [f"{kind} of {axes.y_label} against {axes.x_label}."]
    for p in points:
        drawn = [(x, y) for x, y in zip(p.x, p.y, strict=True) if drawable(x, axes.x) and drawable(y, axes.y)]
        if not drawn:
            parts.append(f"{p.name}: nothing measured.")
            continue
        low, high = min(y for _, y in drawn), max(y for _, y in drawn)
        parts.append(
            f"{p.name}: {number(drawn[0][1])} at {number(drawn[0][0])},"
            f" {number(drawn[-1][1])} at {number(drawn[-1][0])}, lowest {number(low)}, highest {number(high)}."
        )
    return " ".join(parts) + " "

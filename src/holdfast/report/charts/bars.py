"""Charts over named rows: bars, dots with their mean, parts of a whole, heat maps. See `plots` for lines and points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from holdfast.errors import DataError
from holdfast.report.charts.frame import FOOT, Reference, Values, dot, drawable, floats
from holdfast.report.charts.scales import Number, Scale, number, scale_of
from holdfast.report.charts.svg import Box, Drawing, Row, Svg, label, series_class, shorten, tag, text_width

_ROW = 30.0


def bar_chart(
    labels: Sequence[str],
    values: Values,
    *,
    title: str,
    x_label: str,
    intervals: Sequence[tuple[Number, Number] | None] | None = None,
    log_x: bool = False,
    references: Sequence[Reference] = (),
    x_range: tuple[Number, Number] | None = None,
) -> Svg:
    """Horizontal bars with the value at their end and, where `intervals` gives one, its uncertainty.

    Linear bars start at zero; `x_range` is held inside the scale. A missing value is written as not measured.
    """
    sizes = floats(values)
    spans = list(intervals) if intervals is not None else [None] * len(sizes)
    _same_length(labels, values=sizes, intervals=spans)
    ends = [v for span in spans if span for v in span]
    scale = _row_scale([*sizes, *ends, *([] if log_x else [0.0])], log_x, references, x_range)

    def bar(i: int, y: float, box: Box) -> str:
        if not drawable(sizes[i], scale):
            return label("not measured", box.left + 4, y + 4, anchor="start")
        zero = box.x(scale.fraction(0.0) if not scale.log else 0.0)
        end = box.x(scale.fraction(sizes[i]))
        parts = [
            tag("rect", class_="f1", x=min(zero, end), y=y - 7, width=max(1.0, abs(end - zero)), height=14.0, rx=1.5)
        ]
        reach = max(zero, end)
        if span := spans[i]:
            low, high = (box.x(scale.fraction(v)) for v in span)
            parts.append(tag("path", class_="whisker", d=f"M{low:.1f} {y:.1f}H{high:.1f}M{high:.1f} {y - 4:.1f}v8"))
            reach = max(reach, high)
        return "".join(parts) + label(number(sizes[i]), reach + 6, y + 4, "value", "start")

    rows = tuple(
        Row((labels[i], number(v), *_span(spans[i], intervals is not None)), v=(i + 0.5) / len(sizes))
        for i, v in enumerate(sizes)
    )
    headers = ("name", x_label, *(("from", "to") if intervals is not None else ()))
    said = "; ".join(f"{name} {number(v)}" for name, v in zip(labels, sizes, strict=True))
    return Svg(
        title,
        f"Bars of {x_label}: {said}.",
        lambda width: _rows_layout(labels, scale, x_label, references, bar, width),
        headers,
        rows,
    )


def dot_chart(
    labels: Sequence[str],
    groups: Sequence[Sequence[Number]],
    *,
    title: str,
    x_label: str,
    log_x: bool = False,
    references: Sequence[Reference] = (),
    x_range: tuple[Number, Number] | None = None,
) -> Svg:
    """One row per group: every value a dot, the mean a tick. Made for a few seeds, where each should be seen."""
    values = [floats(group) for group in groups]
    _same_length(labels, groups=values)
    scale = _row_scale([v for group in values for v in group], log_x, references, x_range)
    means = [_mean(group) for group in values]

    def dots(i: int, y: float, box: Box) -> str:
        shown = [box.x(scale.fraction(v)) for v in values[i] if drawable(v, scale)]
        if not shown:
            return label("not measured", box.left + 4, y + 4, anchor="start")
        parts = [tag("path", class_="grid", d=f"M{box.left:.1f} {y:.1f}H{box.right:.1f}")]
        parts.append(tag("path", class_="range", d=f"M{min(shown):.1f} {y:.1f}H{max(shown):.1f}"))
        parts += [dot(x, y, 0, 4.0, 0.6) for x in shown]
        if drawable(means[i], scale):
            parts.append(tag("path", class_="mean", d=f"M{box.x(scale.fraction(means[i])):.1f} {y - 8:.1f}v16"))
        return "".join(parts)

    rows = tuple(
        Row((labels[i], number(means[i]), ", ".join(number(v) for v in group)), v=(i + 0.5) / len(values))
        for i, group in enumerate(values)
    )
    said = "; ".join(f"{name} mean {number(m)} of {len(g)}" for name, m, g in zip(labels, means, values, strict=True))
    return Svg(
        title,
        f"Dots of {x_label}: {said}.",
        lambda width: _rows_layout(labels, scale, x_label, references, dots, width),
        ("name", f"mean {x_label}", "each"),
        rows,
    )


def parts_chart(labels: Sequence[str], values: Values, *, title: str, unit: str) -> Svg:
    """One bar cut into the parts of a whole, each named below with its size and share.

    Raises DataError for a negative or missing part.
    """
    sizes = floats(values)
    _same_length(labels, values=sizes)
    if any(not math.isfinite(v) or v < 0 for v in sizes):
        raise DataError(f"parts_chart: parts must be finite and at least 0, not {sizes}; leave a missing part out")
    whole = sum(sizes) or 1.0
    said = [f"{number(v)} {unit}, {number(100 * v / whole, 2)} %" for v in sizes]

    def layout(width: float) -> Drawing:
        parts, x = [], 0.0
        for i, value in enumerate(sizes):
            size = width * value / whole
            parts.append(tag("rect", class_=f"{series_class(i, 'f')} ring", x=x, y=0.0, width=size, height=26.0))
            x += size
        for i, (name, text) in enumerate(zip(labels, said, strict=True)):
            y = 52 + 22.0 * i
            parts.append(tag("rect", class_=series_class(i, "f"), x=0.0, y=y - 10, width=10.0, height=10.0, rx=2))
            room = width - text_width(text) - 30
            parts.append(label(shorten(name, room), 18.0, y, "name", "start"))
            parts.append(label(text, width, y, anchor="end"))
        return Drawing("".join(parts), 40 + 22.0 * len(sizes), Box(0.0, 0.0, width, 26.0))

    middle, rows = 0.0, []
    for name, value, text in zip(labels, sizes, said, strict=True):
        rows.append(Row((name, text), u=(middle + value / 2) / whole))
        middle += value
    description = f"Parts of {number(sum(sizes))} {unit}: " + "; ".join(map(" ".join, (r.cells for r in rows))) + "."
    return Svg(title, description, layout, ("part", unit), tuple(rows))


def heat_map(
    values: Sequence[Sequence[Number | None]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    x_label: str,
    y_label: str,
    log: bool = False,
) -> Svg:
    """Cells shaded from the lowest to the highest value, `values[row][column]`, the first row on top.

    Raises DataError where the lengths do not fit the names.
    """
    cells = [floats(line) for line in values]
    _same_length(rows, values=cells)
    for line in cells:
        _same_length(columns, columns=line)
    usable = [v for line in cells for v in line if math.isfinite(v) and (v > 0 or not log)]
    scale = scale_of(usable, log=log, tight=True)
    low, high = min(usable, default=None), max(usable, default=None)

    def layout(width: float) -> Drawing:
        left = min(0.3 * width, max(map(text_width, rows), default=0.0) + 8)
        size = (width - left) / max(1, len(columns))
        tall = 24.0 if len(rows) <= 12 else 14.0
        box = Box(left, 22.0, width, 22.0 + tall * len(rows))
        parts = [label(shorten(y_label, width), 0.0, 12.0, "tick", "start")]
        for i, line in enumerate(cells):
            y = box.top + i * tall
            parts.append(label(shorten(rows[i], left - 6), left - 8, y + tall / 2 + 4, anchor="end"))
            for j, value in enumerate(line):
                seen = drawable(value, scale)
                shade = f"{0.06 + 0.94 * scale.fraction(value):.2f}" if seen else None
                css = "cell" if seen else "missing"
                where = {"x": left + j * size, "y": y, "width": size, "height": tall}
                parts.append(tag("rect", class_=css, fill_opacity=shade, **where))
        parts.append(_column_names(columns, box, size))
        parts.append(label(shorten(x_label, width / 2), box.right, box.bottom + 34, anchor="end"))
        parts.append(_shades(number(low), number(high), box))
        return Drawing("".join(parts), box.bottom + FOOT, box)

    data = tuple(
        Row((rows[i], columns[j], number(v)), (j + 0.5) / len(columns), (i + 0.5) / len(rows))
        for i, line in enumerate(cells)
        for j, v in enumerate(line)
    )
    said = f"Heat map of {title}, {y_label} by {x_label}, from {number(low)} to {number(high)}."
    return Svg(title, said, layout, (y_label, x_label, "value"), data)


def _same_length(names: Sequence[str], **columns: Sequence[object]) -> None:
    for what, column in columns.items():
        if len(column) != len(names):
            raise DataError(f"{what}: {len(column)} entries for {len(names)} names; give one for each")


def _mean(values: Sequence[float]) -> float:
    usable = [v for v in values if math.isfinite(v)]
    return sum(usable) / len(usable) if usable else math.nan


def _span(span: tuple[Number, Number] | None, wanted: bool) -> tuple[str, ...]:
    if not wanted:
        return ()
    return (number(span[0]), number(span[1])) if span else ("–", "–")


def _row_scale(
    values: Sequence[Number], log: bool, references: Sequence[Reference], x_range: tuple[Number, Number] | None
) -> Scale:
    return scale_of([*values, *(float(r.value) for r in references), *(x_range or ())], log=log)


def _rows_layout(
    labels: Sequence[str],
    scale: Scale,
    x_label: str,
    references: Sequence[Reference],
    mark: Callable[[int, float, Box], str],
    width: float,
) -> Drawing:
    """Names on the left, one row each, an axis below, rules across."""
    left = min(0.36 * width, max(map(text_width, labels), default=0.0) + 14)
    top = 16.0 if references else 2.0
    box = Box(left, top, width - 52, top + _ROW * len(labels))
    parts = []
    taken = -math.inf
    for tick in scale.ticks:
        x, half = box.x(scale.fraction(tick)), text_width(scale.tick_text(tick)) / 2
        parts.append(tag("path", class_="grid", d=f"M{x:.1f} {box.top:.1f}V{box.bottom:.1f}"))
        if x - half > taken + 8:
            parts.append(label(scale.tick_text(tick), x, box.bottom + 17))
            taken = x + half
    for i, name in enumerate(labels):
        y = box.top + _ROW * (i + 0.5)
        parts.append(label(shorten(name, left - 12), 0.0, y + 4, "name", "start"))
        parts.append(mark(i, y, box))
    for rule in references:
        x = box.x(scale.fraction(rule.value))
        parts.append(tag("path", class_="reference", d=f"M{x:.1f} {box.top - 3:.1f}V{box.bottom:.1f}"))
        anchor = "start" if x < width / 2 else "end"
        parts.append(label(shorten(rule.label, width / 2), x, box.top - 6, "name", anchor))
    parts.append(label(shorten(x_label, width), box.right, box.bottom + 34, anchor="end"))
    return Drawing("".join(parts), box.bottom + FOOT, box)


def _column_names(columns: Sequence[str], box: Box, size: float) -> str:
    parts, taken = [], -math.inf
    for j, name in enumerate(columns):
        x, half = box.left + (j + 0.5) * size, text_width(name) / 2
        if x - half > taken + 8 and x + half <= box.right + 2:
            parts.append(label(name, x, box.bottom + 16))
            taken = x + half
    return "".join(parts)


def _shades(low: str, high: str, box: Box) -> str:
    """The key of a heat map: its lightest and darkest cell with their values."""
    y = box.bottom + 24
    parts = [label(low, 0.0, y + 10, anchor="start")]
    x = text_width(low) + 8
    for i in range(6):
        shade = f"{0.06 + 0.94 * i / 5:.2f}"
        parts.append(tag("rect", class_="cell", x=x + 12 * i, y=y, width=12.0, height=12.0, fill_opacity=shade))
    return "".join(parts) + label(high, x + 80, y + 10, anchor="start")

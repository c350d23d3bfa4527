"""The data of a line chart for the page's script, which draws it anew where a reader zooms or wants another axis."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from holdfast.errors import visible
from holdfast.report.charts.frame import Reference
from holdfast.report.charts.scales import Number

MOST_LIVE = 1000
"""Points of a series that a page holds; of more, minima and maxima of equal stretches stay."""


def live_data(
    points: Sequence[Any],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_y: bool,
    references: Sequence[Reference] = (),
    y_range: tuple[Number, Number] | None = None,
) -> str:
    """JSON of the chart, numbers with four significant digits (places on the horizontal axis with seven).

    A series whose places are those of the first has none of its own.
    """
    series: list[dict[str, Any]] = []
    for p in points:
        line: dict[str, Any] = {"n": visible(p.name), "y": [_short(v) for v in p.y]}
        if not series or p.x != points[0].x:
            line["x"] = [_short(v, 7) for v in p.x]
        if p.banded:
            line |= {"lo": [_short(v) for v in p.low], "hi": [_short(v) for v in p.high]}
        series.append(line)
    chart: dict[str, Any] = {"t": visible(title), "x": visible(x_label), "y": visible(y_label), "s": series}
    if log_y:
        chart["l"] = 1
    if rules := [{"v": _short(r.value), "t": visible(r.label)} for r in references if r.axis == "y"]:
        chart["r"] = rules
    if y_range:
        chart["h"] = [_short(v) for v in y_range]
    return json.dumps(chart, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _short(value: Number, digits: int = 4) -> Number | None:
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded

"""The frame around a chart's data: scales, grid, ticks, labels, rules and the legend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, SupportsFloat

from holdfast.report.charts.scales import Number, Scale
from holdfast.report.charts.svg import Box, label, series_class, shorten, tag, text_width

TOP, FOOT = 26.0, 40.0

Values = Iterable[SupportsFloat | None]


@dataclass(frozen=True)
class Reference:
    """A labelled rule across the plot at one value of an axis, such as a threshold."""

    value: Number
    label: str
    axis: Literal["x", "y"] = "y"


@dataclass(frozen=True)
class Axes:
    """What the frame of a chart needs: scales, labels and rules."""

    x: Scale
    y: Scale
    x_label: str
    y_label: str
    references: tuple[Reference, ...]


def draw_frame(axes: Axes, width: float, legend: float, right: float) -> tuple[str, Box]:
    """Grid, ticks and axis labels; the box that is left for the data."""
    left = max((text_width(axes.y.tick_text(t)) for t in axes.y.ticks), default=20.0) + 10
    height = min(240.0, max(150.0, 0.45 * width))
    box = Box(left, legend + TOP, width - right, legend + TOP + height)
    parts = [label(shorten(axes.y_label, width), 0.0, legend + 12, "tick", "start")]
    for tick in axes.y.ticks:
        y = box.y(axes.y.fraction(tick))
        parts.append(tag("path", class_="grid", d=f"M{box.left:.1f} {y:.1f}H{box.right:.1f}"))
        parts.append(label(axes.y.tick_text(tick), box.left - 8, y + 4, anchor="end"))
    parts.append(tag("path", class_="axis", d=f"M{box.left:.1f} {box.bottom:.1f}H{box.right:.1f}"))
    taken = -math.inf
    for tick in axes.x.ticks:
        x, half = box.x(axes.x.fraction(tick)), text_width(axes.x.tick_text(tick)) / 2
        if x - half > taken + 8 and x + half <= width:
            parts.append(label(axes.x.tick_text(tick), x, box.bottom + 17))
            taken = x + half
    parts.append(label(shorten(axes.x_label, width - left), box.right, box.bottom + 34, anchor="end"))
    return "".join(parts), box


def draw_rules(axes: Axes, box: Box) -> str:
    """The labelled rules of a chart, to be drawn over its data."""
    return "".join(_rule(r, axes, box) for r in axes.references)


def _rule(reference: Reference, axes: Axes, box: Box) -> str:
    if reference.axis == "y":
        y = box.y(axes.y.fraction(reference.value))
        path, at = f"M{box.left:.1f} {y:.1f}H{box.right:.1f}", (box.left + 4, y - 5, "start")
    else:
        x = box.x(axes.x.fraction(reference.value))
        anchor = "start" if x < (box.left + box.right) / 2 else "end"
        path, at = (
            f"M{x:.1f} {box.top:.1f}V{box.bottom:.1f}",
            (x + (4 if anchor == "start" else -4), box.top + 10, anchor),
        )
    text = shorten(reference.label, box.right - box.left - 8)
    return tag("path", class_="reference", d=path) + label(text, at[0], at[1], "name halo", at[2])


def draw_legend(names: Sequence[str], width: float, *, dots: bool = False) -> tuple[str, float]:
    """Names in rows above the plot, each behind a stroke (or a dot) of its colour."""
    parts, x, y = [], 0.0, 12.0
    for i, name in enumerate(names):
        text = shorten(name, width - 26)
        size = text_width(text) + 36
        if x and x + size - 14 > width:
            x, y = 0.0, y + 18
        stroke = tag("path", class_=f"curve {series_class(i, 'l')}", d=f"M{x + 1:.1f} {y - 4:.1f}h15")
        parts.append(dot(x + 13, y - 4, i, 4.0) if dots else stroke)
        parts.append(label(text, x + 22, y, "name", "start"))
        x += size
    return "".join(parts), y + 12


def floats(values: Values) -> list[float]:
    """Plain floats; what is missing becomes NaN."""
    return [math.nan if v is None else float(v) for v in values]


def drawable(value: float, scale: Scale) -> bool:
    """Whether a value has a place on a scale."""
    return math.isfinite(value) and (value > 0 or not scale.log)


def dot(x: float, y: float, index: int, radius: float, opacity: float | None = None) -> str:
    """A filled circle in the colour of the index-th series."""
    shade = None if opacity is None else f"{opacity:g}"
    return tag("circle", class_=series_class(index, "f"), cx=x, cy=y, r=f"{radius:g}", fill_opacity=shade)

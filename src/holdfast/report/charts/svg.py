"""Inline SVG: escaping, the palette, and the `Svg` value that every chart function returns.

Colours are CSS variables, so that a page in dark mode recolours its charts; `Svg.save` writes a file that carries its
own light and dark colours. Series colours stay apart under simulated protanopia, deuteranopia and tritanopia, and no
chart relies on colour alone: lines are labelled at their end and dashes repeat once the colours run out.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import DataError, visible
from holdfast.report.charts.scales import Number

COLOURS = 6
LIGHT = {
    "surface": "#ffffff",
    "ink": "#1a1c20",
    "muted": "#5c626d",
    "line": "#e3e5e9",
    "axis": "#a9aeb8",
    "accent": "#1f5fd0",
    "s1": "#1f5fd0",
    "s2": "#d96610",
    "s3": "#00654a",
    "s4": "#b0307a",
    "s5": "#3a1a6e",
    "s6": "#8b8ea9",
}
DARK = {
    "surface": "#131519",
    "ink": "#e9ebef",
    "muted": "#9aa1ad",
    "line": "#2a2e36",
    "axis": "#565d69",
    "accent": "#7aa8ff",
    "s1": "#7aa8ff",
    "s2": "#f08a3c",
    "s3": "#8fe0c0",
    "s4": "#ee9bd0",
    "s5": "#efe38a",
    "s6": "#757b90",
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SMALL = 12


def escape(text: object) -> str:
    """Text made safe for element content and for quoted attributes."""
    return html.escape(visible(str(text)), quote=True)


def tag(name: str, *children: str, **attributes: object) -> str:
    """One element; children are markup, attribute values are escaped, `class_` is class, `_` is a dash."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_coordinate(v) if isinstance(v, float) else escape(v)}"'
        for key, v in attributes.items()
        if v is not None
    )
    return f"<{name}{written}>{''.join(children)}</{name}>" if children else f"<{name}{written}/>"


def _coordinate(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".") if value else "0"


def label(text: str, x: float, y: float, css: str = "tick", anchor: str = "middle") -> str:
    """One line of text in a chart; the text is escaped."""
    return tag("text", escape(text) or " ", class_=css, x=x, y=y, text_anchor=anchor)


def text_width(text: str, size: Number = SMALL) -> float:
    """An estimate of the width in pixels of a sans-serif text, on the generous side."""
    return sum(0.35 if c in "iljtfr.,:;|!'()[] " else 0.85 if c in "MWmw@%" else 0.6 for c in text) * size


def shorten(text: str, width: Number, size: Number = SMALL) -> str:
    """The text cut with an ellipsis to fit a width in pixels."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


@dataclass(frozen=True)
class Box:
    """The rectangle, in pixels, that the data of a chart is drawn into."""

    left: float
    top: float
    right: float
    bottom: float

    def x(self, fraction: float) -> float:
        """Horizontal position of a fraction counted from the left."""
        return self.left + fraction * (self.right - self.left)

    def y(self, fraction: float) -> float:
        """Vertical position of a fraction counted from the bottom."""
        return self.bottom - fraction * (self.bottom - self.top)


@dataclass(frozen=True)
class Drawing:
    """A chart laid out for one width: its markup, height, and where the data lies."""

    markup: str
    height: float
    plot: Box


@dataclass(frozen=True)
class Row:
    """One row of the data behind a chart; `u`, `v` place it in the plot (fractions from the left and the top)."""

    cells: tuple[str, ...]
    u: float | None = None
    v: float | None = None


@dataclass(frozen=True)
class Svg:
    """A chart that can be laid out at any width, with its description and the data behind it.

    `layout(width)` draws it; `headers` and `rows` are the data, used for the table and for the hover readout; `live`
    is JSON from which a page's script draws it anew.
    """

    title: str
    description: str
    layout: Callable[[float], Drawing]
    headers: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    note: str = ""
    live: str = ""

    def markup(self, width: Number = 480) -> str:
        """The `<svg>` element for a page that has `CHART_CSS` and the palette's variables."""
        drawing = self.layout(float(width))
        plot = drawing.plot
        hover = tag("rect", "<title></title>", class_="hover", width=float(width), height=drawing.height)
        return tag(
            "svg",
            tag("title", escape(self.title)),
            tag("desc", escape(self.description)),
            drawing.markup,
            hover,
            class_="chart",
            role="img",
            viewBox=f"0 0 {_coordinate(float(width))} {_coordinate(drawing.height)}",
            data_plot=" ".join(_coordinate(v) for v in (plot.left, plot.top, plot.right, plot.bottom)),
        )

    def standalone(self, width: Number = 720) -> str:
        """A whole SVG document with its own title line and colours, light and dark."""
        pad, head = 16.0, 42.0
        drawing = self.layout(float(width) - 2 * pad)
        height = drawing.height + head + pad / 2
        style = f"{standalone_css()}svg{{font-family:{FONT}}}"
        return '<?xml version="1.0" encoding="UTF-8"?>\n' + tag(
            "svg",
            tag("title", escape(self.title)),
            tag("desc", escape(self.description)),
            tag("style", style),
            tag("rect", class_="surface", width=float(width), height=height),
            label(shorten(self.title, width - 2 * pad, 15), pad, 26.0, "heading", "start"),
            tag("g", drawing.markup, transform=f"translate({pad:g} {head:g})"),
            xmlns="http://www.w3.org/2000/svg",
            role="img",
            width=float(width),
            height=height,
            viewBox=f"0 0 {_coordinate(float(width))} {_coordinate(height)}",
        )

    def save(self, path: str | Path, width: Number = 720) -> Path:
        """Write the standalone SVG; raises DataError where the name does not end in .svg or cannot be written."""
        target = Path(path)
        if target.suffix.lower() != ".svg":
            raise DataError(f"cannot write a plot to {target}: plots are SVG, so name the file {target.stem}.svg")
        try:
            target.write_text(self.standalone(width), encoding="utf-8")
        except OSError as error:
            raise DataError(f"cannot write {target}: {error.strerror}; choose a folder that exists") from error
        return target


_RULES = (
    ("text", "font-size:12px;fill:{muted}"),
    (".heading", "font-size:15px;font-weight:600;fill:{ink}"),
    (".value,.name", "fill:{ink}"),
    (".halo", "paint-order:stroke;stroke:{surface};stroke-width:4;stroke-linejoin:round"),
    (".surface", "fill:{surface}"),
    (".grid", "stroke:{line};stroke-width:1;fill:none"),
    (".axis", "stroke:{axis};stroke-width:1;fill:none"),
    (".reference", "stroke:{ink};stroke-width:1;stroke-dasharray:2 3;fill:none"),
    (".track", "fill:{line}"),
    (".cell", "fill:{accent};stroke:{surface};stroke-width:1"),
    (".missing", "fill:{line};stroke:{surface};stroke-width:1"),
    (".pin", "stroke:{axis};fill:none"),
    (".selection", "fill:{accent};fill-opacity:.14"),
    (".curve", "fill:none;stroke-width:1.75;stroke-linejoin:round;stroke-linecap:round"),
    (".band", "stroke:none;fill-opacity:.14"),
    (".dashed", "stroke-dasharray:5 3"),
    (".whisker,.mean", "stroke:{ink};stroke-width:1.5;fill:none"),
    (".range", "stroke:{accent};stroke-width:1.5;stroke-opacity:.4;fill:none"),
    (".ring", "stroke:{surface};stroke-width:1.5"),
)


def _rules(colour: Callable[[str], str], prefix: str) -> str:
    names = {name: colour(name) for name in LIGHT}
    rules = "".join(
        f"{','.join(prefix + part for part in selector.split(','))}{{{body.format_map(names)}}}"
        for selector, body in _RULES
    )
    for i in range(1, COLOURS + 1):
        c = names[f"s{i}"]
        rules += f"{prefix}.l{i}{{stroke:{c}}}{prefix}.f{i}{{fill:{c}}}"
    return rules


def chart_css() -> str:
    """Style of inline charts, through CSS variables that the page defines (see `palette_css`)."""
    return _rules(lambda name: f"var(--{name})", ".chart ") + ".chart .hover{fill:transparent}"


def palette_css(palette: dict[str, str]) -> str:
    """The palette as CSS variable declarations."""
    return "".join(f"--{name}:{value};" for name, value in palette.items())


def standalone_css() -> str:
    """Style of a chart in a file of its own: plain colours, since many SVG viewers know no CSS variables."""
    return f"{_rules(LIGHT.__getitem__, '')}@media(prefers-color-scheme:dark){{{_rules(DARK.__getitem__, '')}}}"


def series_class(index: int, kind: str) -> str:
    """CSS class of the index-th series, `kind` l for strokes and f for fills; dashes mark a second round of colours."""
    dashed = " dashed" if kind == "l" and (index // COLOURS) % 2 else ""
    return f"{kind}{index % COLOURS + 1}{dashed}"


def spread(wanted: Sequence[Number], gap: Number, low: Number, high: Number) -> list[Number]:
    """Move labels apart so that neighbours are at least `gap` from each other, inside [low, high] if they fit."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed: list[Number] = [0.0] * len(wanted)
    floor = low
    for i in order:
        placed[i] = max(wanted[i], floor)
        floor = placed[i] + gap
    ceiling = max(high, low + gap * (len(wanted) - 1))
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed

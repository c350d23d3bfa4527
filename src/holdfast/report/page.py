"""The page that reports are written on: one HTML file, no network, light and dark, readable on a telephone.

Every builder escapes what it is given unless it is `Markup`, so that no text from a run, a dump or a model can become
HTML. The page forbids all loading by its content security policy.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from holdfast.errors import DataError
from holdfast.report.charts.svg import DARK, LIGHT, Svg, chart_css, escape, palette_css

_LIGHT = LIGHT | {
    "panel": "#f6f7f9",
    "good": "#00654a",
    "bad": "#b3261e",
    "warn": "#d96610",
    "caution": "#8a4b00",
    "warm": "217 102 16",
    "cool": "31 95 208",
}
_DARK = DARK | {
    "panel": "#1b1e24",
    "good": "#8fe0c0",
    "bad": "#ff9a92",
    "warn": "#f08a3c",
    "caution": "#f0b46a",
    "warm": "196 92 20",
    "cool": "58 112 214",
}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src '{script}'{more}; img-src data:"
"""No script but ours, told by its hash, whatever text should slip through."""


_LONG = 24
"""Characters of a header from which on it may take several lines."""


class Markup(str):
    """Text that is already HTML: builders put it in as it is, everything else they escape."""

    __slots__ = ()


@dataclass(frozen=True)
class Cell:
    """A table cell whose order is not its text: `sort` is what a sortable table compares."""

    text: str
    sort: int | float | str


def html(value: object) -> Markup:
    """Anything as HTML: markup stays, other values are escaped."""
    return value if isinstance(value, Markup) else Markup(escape(value))


def join(parts: Iterable[object], between: str = "") -> Markup:
    """Pieces of a page one after the other, each escaped unless it is markup."""
    return Markup(between.join(html(p) for p in parts))


def element(name: str, *children: object, css: str | None = None) -> Markup:
    """One HTML element around children, which are escaped unless they are markup."""
    return Markup(f"<{name}{_class(css)}>{join(children)}</{name}>")


def paragraph(*parts: object, css: str | None = None) -> Markup:
    """A paragraph of text and markup."""
    return element("p", *parts, css=css)


def absent(what: str) -> Markup:
    """Says in place of a figure that its data was not measured."""
    return paragraph(what, css="absent")


def section(heading: str, *blocks: object, lead: object = "") -> Markup:
    """A part of the page under a heading, with an optional sentence on how to read it."""
    head = element("header", element("h2", heading), paragraph(lead) if lead else "")
    return element("section", head, *blocks)


def columns(*blocks: object) -> Markup:
    """Blocks side by side where there is room."""
    return element("div", *blocks, css="grid2")


def figure(chart: Svg, caption: object = "", *, full: bool = False, heading: bool = True) -> Markup:
    """A chart with heading, caption and its data, laid out for two widths (three if it takes the `full` width).

    A chart of a single place, such as one bar or one step, is a small table instead.
    """
    if _single(chart):
        return _small_table(chart, caption, heading)
    sizes = [("s", 340.0), ("m", 500.0), *([("l", 1000.0)] if full else [])]
    drawings = join(Markup(f'<div class="size-{name}">{chart.markup(width)}</div>') for name, width in sizes)
    note = join((text for text in (caption, chart.note) if text), " ")
    live = f' data-live="{escape(chart.live)}"' if chart.live else ""
    head = element("h3", chart.title) if heading else ""
    said = paragraph(note, css="caption") if note else ""
    css = "plot has-l" if full else "plot"
    return Markup(f'<figure class="{css}"{live}>{head}{drawings}{said}{_data(chart)}</figure>')


def _single(chart: Svg) -> bool:
    places = {row.u for row in chart.rows}
    return len(chart.rows) == 1 or (len(places) == 1 and None not in places)


def _small_table(chart: Svg, caption: object, heading: bool) -> Markup:
    numbers = range(1, len(chart.headers))
    listing = table(chart.headers, [row.cells for row in chart.rows], label=chart.title, numeric=numbers)
    head, said = element("h3", chart.title) if heading else "", paragraph(caption, css="caption") if caption else ""
    return element("div", head, listing, said, css="small-table")


def _data(chart: Svg) -> str:
    if not chart.rows:
        return ""
    head = join(Markup(f'<th scope="col">{html(name)}</th>') for name in chart.headers)
    rows = []
    for row in chart.rows:
        place = "".join(f' data-{k}="{v:.4g}"' for k, v in (("u", row.u), ("v", row.v)) if v is not None)
        cells = f'<th scope="row">{html(row.cells[0])}</th>' + "".join(f"<td>{html(c)}</td>" for c in row.cells[1:])
        rows.append(f"<tr{place}>{cells}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    named = html(f"Data of: {chart.title}")
    return (
        f'<details class="data"><summary>Data</summary>'
        f'<div class="scroll" tabindex="0" role="group" aria-label="{named}">{table}</div></details>'
    )


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    label: str,
    numeric: Sequence[int] = (),
    marks: Mapping[int, str] | None = None,
    sortable: bool = False,
) -> Markup:
    """A table; columns listed in `numeric` are right-aligned, `marks` gives a row a class (`best`, `dim`)."""
    names = [
        f'<th scope="col"{_class("num" if i in numeric else "long" if len(name) > _LONG else None)}>'
        f"{f'<button>{html(name)}</button>' if sortable else html(name)}</th>"
        for i, name in enumerate(headers)
    ]
    lines = []
    for r, row in enumerate(rows):
        cells = []
        for i, value in enumerate(row):
            kind = 'th scope="row"' if i == 0 else "td"
            sort = f' data-sort="{escape(value.sort)}"' if isinstance(value, Cell) else ""
            text = html(value.text if isinstance(value, Cell) else value)
            cells.append(f"<{kind}{_class('num' if i in numeric else None)}{sort}>{text}</{kind[:2]}>")
        lines.append(f"<tr{_class((marks or {}).get(r))}>{''.join(cells)}</tr>")
    return Markup(
        f'<div class="scroll" tabindex="0" role="group" aria-label="{html(label)}">'
        f"<table{_class('wide sortable' if sortable else 'wide')}>"
        f"<thead><tr>{''.join(names)}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def tiles(items: Iterable[tuple[str, str, str]]) -> Markup:
    """Key figures: (name, figure, note) each."""
    cells = [
        element(
            "div", element("dt", k), element("dd", big, css="big"), element("dd", note, css="small") if note else ""
        )
        for k, big, note in items
    ]
    return element("dl", *cells, css="tiles")


def facts(items: Iterable[tuple[str, object]]) -> Markup:
    """A list of names and values."""
    return element("dl", *(join((element("dt", k), element("dd", v))) for k, v in items), css="facts")


def notices(items: Iterable[tuple[str, str]]) -> Markup:
    """Warnings: (text, where or how often)."""
    lines = [element("li", text, " ", element("span", where, css="count")) for text, where in items]
    return element("ul", *lines, css="notices") if lines else Markup()


def preformatted(text: str, css: str | None = None) -> Markup:
    """Text in a fixed-width block, line breaks kept; it scrolls sideways, by keys too."""
    code = element("code", join(text.splitlines(), "\n"))
    return Markup(f'<pre{_class(css)} tabindex="0">{code}</pre>')


def copyable(text: str) -> Markup:
    """Lines to take over into a configuration, with a button that copies them."""
    button = Markup('<button type="button" class="copy">copy</button>')
    return element("div", preformatted(text), button, css="copyable")


def folded(summary: str, *blocks: object) -> Markup:
    """Blocks behind a line that opens them."""
    return element("details", element("summary", summary), *blocks)


def page(
    title: str,
    *blocks: object,
    kicker: str = "",
    verdict: object = "",
    footer: str = "",
    scripts: Sequence[str] = (),
    files: bool = False,
) -> Markup:
    """The whole document: title, the verdict in plain words, then the blocks.

    `scripts` are further files of this folder, run after the page's own; with `files` they may load files beside the
    page, which nothing else on it may.
    """
    head = element(
        "header",
        paragraph(kicker, css="kicker") if kicker else "",
        element("h1", title),
        paragraph(verdict, css="verdict") if verdict else "",
    )
    parts = "\n".join(map(_resource, ("page.js", "curves.js", *scripts)))
    script = f'(() => {{\n"use strict";\n{parts}}})();\n'
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = _POLICY.format(script=f"sha256-{digest}", more=" 'strict-dynamic'" if files else "")
    return Markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{html(title)}</title><style>{_style()}</style></head>'
        f"<body><main>{head}{join(blocks)}</main>{element('footer', footer) if footer else ''}"
        f"<script>{script}</script></body></html>\n"
    )


def write_page(path: Path, document: Markup) -> Path:
    """Write a page as UTF-8; raises DataError where the place cannot be written."""
    try:
        path.write_text(document, encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; give a folder that you may write to") from error
    return path


def _style() -> str:
    return (
        f":root{{color-scheme:light dark;{palette_css(_LIGHT)}}}"
        f"@media(prefers-color-scheme:dark){{:root{{{palette_css(_DARK)}}}}}"
        f"{_resource('page.css')}{chart_css()}"
    )


def _resource(name: str) -> str:
    return resources.files("holdfast.report").joinpath(name).read_text(encoding="utf-8")


def _class(css: str | None) -> str:
    return f' class="{css}"' if css else ""

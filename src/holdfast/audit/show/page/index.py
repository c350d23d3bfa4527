"""A page that links several reports: what `holdfast audit --demo` opens with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.report.page import Markup, element, html, page, section, table, write_page

_CHIPS = {"critical": "chip bad", "warning": "chip caution", "clean": "chip good", "unjudged": "chip"}


@dataclass(frozen=True)
class Entry:
    """One report: its name, what was planted, what was found and whether it had to be, and the link from the index."""

    name: str
    planted: str
    tone: str
    headline: str
    href: str
    as_expected: bool


def write_index(path: Path, entries: Sequence[Entry]) -> Path:
    """Write the page; raises DataError where the place cannot be written."""
    rows = [
        (
            Markup(f'<a href="{html(entry.href)}">{html(entry.name)}</a>'),
            entry.planted,
            element("span", entry.tone, css=_CHIPS[entry.tone]),
            entry.headline,
        )
        for entry in entries
    ]
    listing = table(("run", "what was planted", "verdict", "what the audit says"), rows, label="Runs", sortable=True)
    right = sum(entry.as_expected for entry in entries)
    verdict = (
        f"{len(entries)} small simulated runs: one healthy, each of the others with one fault planted in it. "
        f"In {right} of them the audit says what it should."
    )
    document = page("What the audit finds", section("Runs", listing), kicker="Holdfast · audit --demo", verdict=verdict)
    return write_page(path, document)

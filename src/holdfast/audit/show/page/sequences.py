"""The sequences with the largest disagreement: a table of them, and the worst ones token by token."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.report.charts.scales import number
from holdfast.report.charts.svg import shorten
from holdfast.report.page import Cell, Markup, absent, html, join, section, table
from holdfast.report.tokens import token_key, token_view, worst_position
from holdfast.types import Rollout

Numbered = Sequence[tuple[int, Rollout]]
VIEWED = 6
_MOST_SHOWN = 1200
"""Tokens shown of one sequence: its ends and what surrounds its worst tokens."""


def sequences_section(worst: Numbered) -> Markup:
    """The worst sequences, or why there are none."""
    if not worst:
        return section("The worst sequences", absent("The log holds no sequence with tokens."))
    lead = (
        "The sequences with the largest |log ratio| on one token. "
        "Point at a token, or focus the text and use the arrow keys."
    )
    return section("The worst sequences", _listing(worst), token_key(), join(map(_view, worst[:VIEWED])), lead=lead)


def _listing(worst: Numbered) -> Markup:
    rows = []
    for place, (name, rollout) in enumerate(worst):
        position = worst_position(rollout)
        link = Markup(f'<a href="#sequence-{name}">{name}</a>') if place < VIEWED else html(name)
        ratio, where, text = ("–", Cell("–", -1), "–") if position is None else _worst(rollout, *position)
        length = len(rollout.response_ids)
        reward = Cell(number(rollout.reward), -1e30 if rollout.reward is None else rollout.reward)
        tokens = Cell(f"{length:,}", length)
        rows.append((link, _plain(rollout.step), rollout.environment or "–", tokens, reward, ratio, where, text))
    return table(
        ("sequence", "step", "environment", "tokens", "reward", "log ratio", "at token", "text"),
        rows,
        label="The worst sequences",
        numeric=(1, 3, 4, 5, 6),
        sortable=True,
    )


def _worst(rollout: Rollout, place: int, ratio: float) -> tuple[Cell, Cell, str]:
    text = rollout.token_texts[place] if rollout.token_texts else f"id {rollout.response_ids[place]}"
    return Cell(number(ratio), ratio), Cell(f"{place + 1:,}", place), shorten(text, 160) or "∅"


def _plain(value: int | None) -> Cell:
    return Cell("–" if value is None else f"{value:,}", -1 if value is None else value)


def _view(numbered: tuple[int, Rollout]) -> Markup:
    name, rollout = numbered
    position = worst_position(rollout)
    at = f": log ratio {number(position[1])} at token {position[0] + 1:,}" if position else ""
    view = token_view(rollout, heading=f"Sequence {name}{at}", most=_MOST_SHOWN)
    return Markup(f'<div id="sequence-{name}">{view}</div>')

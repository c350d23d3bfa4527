"""A preflight in a terminal: the verdict, what is wrong, where the gap comes from, what to set."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from holdfast.audit.show.terminal import STYLES, findings_table, line, numbers_table
from holdfast.preflight.inspect import Preflight
from holdfast.preflight.show.words import (
    HEALTHY,
    cause_words,
    entropy_row,
    repeat_words,
    scope,
    sync_words,
)


def print_preflight(console: Console, found: Preflight) -> None:
    """Print all of it; lines to copy are never broken."""
    console.print(summary(found))
    again, alone = found.stability.again, found.stability.alone
    blocks = {
        "Where the gap comes from": [cause_words(cause) for cause in found.causes],
        "Weight sync": sync_words(found),
        "The same again": [f"{repeat.name}: {repeat_words(repeat)}" for repeat in (again, alone)],
        "What to set": _proposed(found),
    }
    for title, lines in blocks.items():
        console.print(Text(title, "bold"))
        for text in lines:
            console.print(line(f"  {text}"), soft_wrap=True)
        console.print()


def summary(found: Preflight) -> RenderableType:
    """The verdict, the findings and the drift."""
    parts: list[RenderableType] = [line(found.headline, STYLES[found.tone]), line(scope(found)), Text()]
    if found.findings:
        parts += [findings_table(found.findings), Text()]
    if (numbers := numbers_table(found.audit)) is not None:
        parts += [numbers, line(HEALTHY, "dim"), Text()]
    if found.entropy:
        heads = ("entropy, nats", "tokens", "mean |log ratio|", "k3")
        parts += [_table("The gap by entropy", heads, [entropy_row(row) for row in found.entropy]), Text()]
    return Group(*parts)


def _proposed(found: Preflight) -> list[str]:
    proposal = found.proposal
    if proposal is None:
        return list(found.notes)
    planned = f"planned: responses of {proposal.length:,} tokens, {proposal.staleness} updates behind"
    said = [planned, *(f"assumed: {text}" for text in proposal.assumed)]
    for rule, recommendation in proposal.advice.recommendations.items():
        said.append(str(recommendation))
        said += [f"  {text}" for text in proposal.lines[rule].splitlines()]
    return said


def _table(title: str, heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(*heads, box=None, padding=(0, 3, 0, 0), pad_edge=False, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(line(cell) for cell in row))
    return table

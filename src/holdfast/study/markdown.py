"""The page of a study for the docs: Markdown, made from its results alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

import tomli_w

from holdfast.study.definition import Study
from holdfast.study.judge import (
    Table,
    account,
    chance_note,
    claim_verdict,
    dropped,
    failures,
    judge,
    made_with,
    outcome_table,
    place,
    seeds_of,
    tuning_table,
)
from holdfast.study.plan import cells
from holdfast.study.results import number_title


def markdown_page(study: Study, results: Mapping[str, Any], name: str) -> str:
    """The whole page."""
    judged = judge(study, results)
    blocks = [
        f"# {study.title}",
        f"Claim: {study.claim}",
        f"Refuted by: {study.refuted_by}",
        f"**{claim_verdict(judged)}** {account(results)} {seeds_of(study)}",
        study.about,
        f"Written from [{name}.json]({name}.json), which `holdfast study docs/evidence/{name}.json` draws as a page "
        "with charts. How to read it: [studies](../studies.md).",
        "## Comparisons",
        f"First minus second on shared seeds. {chance_note(judged)}".strip(),
    ]
    for where, rows in groupby(judged, key=lambda row: place(row.cell)):
        blocks += [f"### {_capital(where)}"] if where != "all runs" else []
        blocks.append("\n".join(f"- {'**Claim.** ' if row.claim else ''}{row.sentence}" for row in rows))
    blocks += list(_outcomes(study, results))
    tried = tuning_table(study, results)
    blocks += ["## Settings chosen", _table(tried)] if tried[1] else []
    for heading, lines in (("## Runs that broke", failures(results)), ("## Runs no longer planned", dropped(results))):
        blocks += [heading, "\n".join(f"- {line}" for line in lines)] if lines else []
    blocks += ["## Setting", f"Settings hash {results['hash']}; {made_with(results)}.", _settings(study)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _outcomes(study: Study, results: Mapping[str, Any]) -> Iterator[str]:
    metric = study.metric
    yield "## Every run"
    star = f" A star marks a run that broke, which counts as {metric.failed:g}." if failures(results) else ""
    collapse = f" Collapsed: below {metric.collapse:g} of its own start." if metric.collapse is not None else ""
    best = "lowest" if metric.lowest else "highest"
    said = f"{_capital(number_title(metric))}; the {best} is the best.{star}{collapse}"
    yield f"{said} Other columns are means over seeds."
    for cell in cells(study):
        table = outcome_table(study, results, cell)
        if table[1]:
            yield f"### {_capital(place(cell))}"
            yield _table(table)


def _settings(study: Study) -> str:
    values: dict[str, Any] = {"base": study.base}
    values["factor"] = [found.model_dump(mode="json") for found in study.factor]
    values["configuration"] = [found.model_dump(mode="json") for found in study.configuration]
    return f"```toml\n{tomli_w.dumps({k: v for k, v in values.items() if v})}```"


def _table(table: Table) -> str:
    headers, rows = table
    lines = [headers, ["-"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

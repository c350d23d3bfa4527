"""The page of a preflight, and report.json beside it; its parts that a log has too are the audit's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import holdfast
from holdfast.audit.show.jsonout import write_json
from holdfast.audit.show.page.figures import drift_section
from holdfast.audit.show.page.findings import findings_section, setting
from holdfast.audit.show.page.sequences import VIEWED, Numbered, sequences_section
from holdfast.audit.show.page.tables import masks_section
from holdfast.errors import DataError
from holdfast.preflight.inspect import Preflight
from holdfast.preflight.show.jsonout import preflight_dict
from holdfast.preflight.show.words import (
    CAUSE_HEADS,
    HEALTHY,
    cause_row,
    entropy_row,
    repeat_words,
    scope,
    sync_words,
)
from holdfast.report.charts.bars import bar_chart
from holdfast.report.charts.scales import number
from holdfast.report.page import Markup, absent, element, figure, folded, join, page, section, table, tiles, write_page
from holdfast.report.words import percent
from holdfast.rollout.models import token_texts


def write_preflight(folder: Path, found: Preflight, tokenizer: Any) -> tuple[Path, Path]:
    """Write report.html and report.json; returns their paths.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror}; give a folder with --out") from error
    worst = [
        (name, dataclasses.replace(rollout, token_texts=token_texts(tokenizer, rollout.response_ids)))
        for name, rollout in found.audit.sample.worst()
    ]
    document = preflight_page(found, worst)
    return write_page(folder / "report.html", document), write_json(folder / "report.json", preflight_dict(found))


def preflight_page(found: Preflight, worst: Numbered) -> Markup:
    """The document; `worst` are the sequences to show token by token, worst first."""
    return page(
        f"Preflight of {Path(str(found.plan.config.model.source)).name}",
        tiles(_tiles(found)),
        findings_section(found.audit, {name for name, _ in worst[:VIEWED]}),
        _causes(found),
        _sync(found),
        _thresholds(found),
        drift_section(found.audit.statistics, found.audit.facts.unit),
        _entropy(found),
        masks_section(found.advice),
        sequences_section(worst),
        kicker="Holdfast · preflight",
        verdict=join((element("strong", found.headline), scope(found), HEALTHY), " "),
        footer=f"Written by Holdfast {holdfast.__version__}. This page loads nothing.",
    )


def _tiles(found: Preflight) -> list[tuple[str, str, str]]:
    size, kl = found.gap.size, found.gap.kl
    statistics = found.audit.statistics
    exact = statistics.mean("kl_exact")
    low, high = statistics.mean("tv_lower"), statistics.mean("tv_upper")
    cards = [
        ("Mean |log ratio|", number(size.value, 2), f"nats a token; {number(size.low, 2)} to {number(size.high, 2)}"),
        ("KL per token", number((exact or kl).value, 2), "exact" if exact else "k3 estimate"),
        ("Worst token", number(statistics.sizes.largest, 2), "|log ratio|, nats"),
        ("Weight sync", found.sync.verdict, ""),
    ]
    if low is not None and high is not None:
        cards.append(("Total variation", f"{number(low.value, 2)} to {number(high.value, 2)}", "a token, proven"))
    return cards


def _causes(found: Preflight) -> Markup:
    measured = [cause for cause in found.causes if cause.change is not None and not cause.supposed]
    chart = ""
    if measured:
        values = [cause.change.share.value for cause in measured if cause.change]
        spans = [(cause.change.share.low, cause.change.share.high) for cause in measured if cause.change]
        drawn = bar_chart(
            [cause.name for cause in measured],
            values,
            title="Share of the gap that each switch takes away",
            x_label="share of the mean |log ratio|",
            intervals=spans,
        )
        chart = figure(drawn, "Each alone; shares do not add up to 1. Negative: the gap grows without it.", full=True)
    listed = table(
        CAUSE_HEADS, [cause_row(cause) for cause in found.causes], label="Where the gap comes from", numeric=(2, 3)
    )
    lead = (
        "Each was switched, on the engine or in what the trainer is told, and the gap measured again over the same "
        "prompts. Seen: it is there, and cannot be switched from here. Not allowed: the engine has no such switch. Not "
        "set: there is nothing to switch."
    )
    return section("Where the gap comes from", chart, listed, lead=lead)


def _sync(found: Preflight) -> Markup:
    stable = found.stability
    lines = [element("li", text) for text in sync_words(found)]
    lines += [element("li", f"{repeat.name}: {repeat_words(repeat)}") for repeat in (stable.again, stable.alone)]
    return section("Weight sync and repetition", element("ul", *lines))


def _thresholds(found: Preflight) -> Markup:
    heading, proposal = "What to set", found.proposal
    if proposal is None:
        return section(heading, absent(" ".join(found.notes)))
    advised = proposal.advice.recommendations.values()
    rows = [
        (r.rule, _settings(r.settings), percent(r.point.acceptance), percent(r.acceptance_at_twice)) for r in advised
    ]
    listed = table(("mask", "setting", "keeps", "at twice the drift"), rows, label="Thresholds", numeric=(2, 3))
    blocks = [element("div", element("h4", r.rule), *setting(proposal.lines[r.rule])) for r in advised]
    assumed = element("ul", *(element("li", text) for text in proposal.assumed))
    lead = (
        f"For responses of {proposal.length:,} tokens, {proposal.staleness} updates behind: KL per token "
        f"{number(proposal.kl, 2)} at equal weights, {number(proposal.planned_kl, 2)} as planned."
    )
    return section(
        heading,
        listed,
        element("h3", f"The lines for {found.plan.framework}"),
        element("div", *blocks, css="settings"),
        folded("Why these", element("ul", *(element("li", r.reason, ".") for r in advised))),
        element("h3", "Taken for granted"),
        assumed,
        lead=lead,
    )


def _settings(values: Any) -> str:
    return ", ".join(
        f"{key} = {value:.3g}" if isinstance(value, float) else f"{key} = {value}" for key, value in values.items()
    )


def _entropy(found: Preflight) -> Markup:
    if not found.entropy:
        return Markup()
    heads = ("entropy, nats", "tokens", "mean |log ratio|", "k3")
    rows = [entropy_row(row) for row in found.entropy]
    lead = "How open the trainer was at a token: an engine's noise grows with it."
    return section("The gap by entropy", table(heads, rows, label="The gap by entropy", numeric=(1, 2, 3)), lead=lead)

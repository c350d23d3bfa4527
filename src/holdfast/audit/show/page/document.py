"""The whole page of an audit, from the verdict down to what could not be known."""

from __future__ import annotations

from pathlib import Path

import holdfast
from holdfast.audit.judge.advice import SampleAdvice
from holdfast.audit.judge.auditor import Audit
from holdfast.audit.judge.verdict import verdict_of
from holdfast.audit.show.page.attribution import attribution_section, writers_section
from holdfast.audit.show.page.course import course_section, more_section
from holdfast.audit.show.page.figures import acceptance_section, drift_section
from holdfast.audit.show.page.findings import findings_section
from holdfast.audit.show.page.sequences import VIEWED, Numbered, sequences_section
from holdfast.audit.show.page.tables import advice_section, masks_section, unknown_section
from holdfast.report.charts.scales import number
from holdfast.report.page import Markup, element, facts, folded, join, page, tiles, write_page


def write_audit_page(path: Path, audit: Audit, advice: SampleAdvice, *, title: str, worst: Numbered) -> Path:
    """Write the page; raises DataError where the place cannot be written."""
    return write_page(path, audit_page(audit, advice, title=title, worst=worst))


def audit_page(audit: Audit, advice: SampleAdvice, *, title: str, worst: Numbered) -> Markup:
    """The document. `worst` are the sequences to show, worst first, with their texts where there are any."""
    verdict = verdict_of(audit)
    sources = [(str(place + 1), source) for place, source in enumerate(audit.sources[:200])]
    more = f", the first {len(sources)}" if len(audit.sources) > len(sources) else ""
    return page(
        title,
        tiles(_tiles(audit)),
        findings_section(audit, {name for name, _ in worst[:VIEWED]}),
        course_section(audit.course),
        *(() if audit.of_numbers else _of_tokens(audit, advice, worst)),
        unknown_section(audit, advice.missing if advice.advice else ()),
        more_section(audit),
        folded(f"{len(audit.sources):,} files read{more}", facts(sources)) if sources else "",
        kicker="Holdfast · audit",
        verdict=join((element("strong", verdict.headline), *verdict.details), " "),
        footer=f"Written by Holdfast {holdfast.__version__}. This page loads nothing.",
    )


def _of_tokens(audit: Audit, advice: SampleAdvice, worst: Numbered) -> tuple[Markup, ...]:
    """What only a log of tokens can tell."""
    return (
        drift_section(audit.statistics, audit.facts.unit),
        attribution_section(audit.attribution),
        writers_section(audit.writers),
        acceptance_section(audit.statistics, advice),
        advice_section(advice),
        masks_section(advice),
        sequences_section(worst),
    )


def _tiles(audit: Audit) -> list[tuple[str, str, str]]:
    counted = audit.facts
    if audit.of_numbers:
        names = ("reward", "entropy", "length", "truncated")
        known = [(name, found) for name in names if (found := audit.course.finite(name)) is not None]
        told = [(name.capitalize(), number(float(s.values[-1]), 3), f"at step {int(s.steps[-1])}") for name, s in known]
        return [("Read", f"{len(counted.steps):,}", f"steps of {len(audit.course.series)} numbers"), *told]
    steps = f"{len(counted.steps):,} steps" if counted.steps else "steps not recorded"
    cards = [("Read", f"{counted.own_tokens:,}", f"tokens of {counted.sequences:,} sequences, {steps}")]
    mean = audit.statistics.mean("abs_log")
    if mean is not None:
        span = f"nats a token; {number(mean.low, 2)} to {number(mean.high, 2)}"
        cards.append(("Mean |log ratio|", number(mean.value, 2), span))
        cards.append(("Worst token", number(audit.statistics.sizes.largest, 2), "|log ratio|, nats"))
    exact = audit.statistics.mean("kl_exact") or audit.statistics.mean("k3")
    if exact is not None:
        kind = "exact" if audit.statistics.exact else "k3 estimate"
        cards.append(
            ("KL per token", number(exact.value, 2), f"{kind}; {number(exact.low, 2)} to {number(exact.high, 2)}")
        )
    low, high = audit.statistics.mean("tv_lower"), audit.statistics.mean("tv_upper")
    if low is not None and high is not None:
        span = f"{number(low.value, 2)} to {number(high.value, 2)}"
        cards.append(("Total variation", span, "a token, by the engine's likeliest tokens"))
    kept = audit.statistics.by_length.mean("accepted", "judged")
    if kept is not None:
        cards.append(("Kept", f"{number(100 * kept.value)} %", "of the sequences, by the mask in the log"))
    return cards

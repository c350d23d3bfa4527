"""What was found: one card each, most severe first, with its evidence, its places, its meaning and the way out."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from holdfast.audit.judge.auditor import Audit
from holdfast.audit.judge.finding import Finding, Where
from holdfast.audit.judge.verdict import interval, sentence
from holdfast.audit.measure.estimate import Estimate
from holdfast.report.charts.scales import number
from holdfast.report.page import Markup, absent, copyable, element, facts, folded, html, join, paragraph, section

CHIPS = {"critical": "chip bad", "warning": "chip caution", "info": "chip"}


def findings_section(audit: Audit, shown: Collection[int]) -> Markup:
    """All findings; `shown` are the sequences that the page shows token by token, for the links to them."""
    spoke = {finding.name for finding in (*audit.findings, *audit.withheld)}
    quiet = {name: asks for name, asks in audit.asked.items() if name not in spoke}
    cards = join(_card(finding, shown, audit.framework) for finding in audit.findings)
    passed = folded(f"{len(quiet)} checks found nothing", facts(quiet.items())) if quiet else ""
    lead = f"{len(audit.asked)} checks ran." + (" The most severe finding comes first." if audit.findings else "")
    return section("Findings", cards, _withheld(audit), passed, lead=lead)


def _card(finding: Finding, shown: Collection[int], framework: str | None) -> Markup:
    told = [(name, _value(value)) for name, value in finding.evidence.items()]
    told += _places(finding.where, shown)
    return element(
        "article",
        element("h3", element("span", finding.severity, css=CHIPS[finding.severity]), sentence(finding.headline)),
        paragraph(finding.meaning),
        paragraph(element("strong", "What to do. "), finding.fix) if finding.fix else "",
        _settings(finding.settings, framework),
        folded(f"Evidence of {finding.name}", facts(told)) if told else "",
        css=f"finding {finding.severity}",
    )


def _settings(settings: Mapping[str, str], framework: str | None) -> Markup:
    """The lines of each framework: those of the log's own first, and the others behind a line that opens them."""
    lines = {name: element("div", element("h4", name), *setting(text)) for name, text in settings.items()}
    if framework not in lines:
        return element("div", *lines.values(), css="settings") if lines else Markup()
    own = lines.pop(framework)
    others = folded("The same on other frameworks", element("div", *lines.values(), css="settings")) if lines else ""
    return join((element("div", own, css="settings"), others))


def setting(text: str) -> list[Markup]:
    """Sentences as sentences, and what is to be set with a button that copies it.

    A line is a sentence where it says that there is no option, or nothing to set.
    """
    parts: list[Markup] = []
    lines = text.splitlines()
    said = [i for i, one in enumerate(lines) if is_prose(one)]
    code = [one for i, one in enumerate(lines) if i not in said]
    parts += [paragraph(sentence(lines[i])) for i in said]
    if code:
        parts.append(copyable("\n".join(code)))
    return parts


def is_prose(text: str) -> bool:
    """Whether a line is a sentence and nothing to be copied."""
    return text.startswith(("nothing to set", "no option", "holdfast audit --formats", "HoldfastGRPOTrainer in"))


def _value(value: float | int | str | Estimate) -> str:
    if isinstance(value, Estimate):
        return interval(value)
    if isinstance(value, (bool, str)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else number(value, 3)


def _places(where: Where, shown: Collection[int]) -> list[tuple[str, Markup]]:
    positions = [join((f"token {token + 1} of ", _sequence(sequence, shown))) for sequence, token in where.positions]
    named = [
        ("steps", join((html(step) for step in where.steps), ", ")),
        ("sequences", join((_sequence(sequence, shown) for sequence in where.sequences), ", ")),
        ("tokens", join(positions, ", ")),
    ]
    return [(name, text) for name, text in named if text]


def _sequence(number_: int, shown: Collection[int]) -> Markup:
    if number_ in shown:
        return Markup(f'<a href="#sequence-{number_}">{number_}</a>')
    return html(number_)


def _withheld(audit: Audit) -> Markup:
    if not audit.withheld:
        return Markup()
    names = ", ".join(f.name for f in audit.withheld)
    one = len(audit.withheld) == 1
    return absent(
        f"Withheld: {names}. {'It rests' if one else 'They rest'} on log-probabilities that the data error above says "
        "cannot be trusted; mend the log and audit it again."
    )

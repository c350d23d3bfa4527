"""The audit in a sentence or two of plain words: what is wrong, how sure that is, and what could not be known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from holdfast.audit.judge.auditor import Audit
from holdfast.audit.measure.estimate import Estimate
from holdfast.audit.measure.statistics.running import Region
from holdfast.report.charts.scales import number
from holdfast.report.words import percent

REGION_HEADS = ("at every sampled token", "proven inside", "proven outside", "undecided")
Tone = Literal["clean", "unjudged", "warning", "critical"]
SEQUENCES_ONLY = (
    "The log names too few prompts, or none: intervals resample sequences and are too narrow where several answer one "
    "prompt. Log a prompt or group id."
)


@dataclass(frozen=True)
class Verdict:
    """`headline` says it in one sentence; `details` are the sentences after it."""

    tone: Tone
    headline: str
    details: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((self.headline, *self.details))


def verdict_of(audit: Audit) -> Verdict:
    """What an audit comes down to."""
    grave = [f for f in audit.findings if f.severity == "critical"]
    mild = [f for f in audit.findings if f.severity == "warning"]
    data = [f for f in grave if f.kind == "data"]
    details = [_scope(audit), _drift(audit)]
    if data:
        headline = f"The log itself is wrong: {data[0].headline}."
        if audit.withheld:
            details.insert(0, f"{_count(len(audit.withheld), 'finding')} about drift {_are(audit.withheld)} withheld.")
    elif grave:
        headline = f"This run is in trouble: {grave[0].headline}."
    elif mild:
        headline = f"Not broken, but worth a look: {mild[0].headline}."
    elif audit.unjudged:
        headline = f"Not judged: {audit.unjudged[0]}."
    else:
        headline = "Nothing wrong was found."
    others = len(grave) + len(mild) - 1
    if others > 0:
        details.insert(0, f"{_count(others, 'other finding')} below.")
    details += [f"Not judged: {why}." for why in audit.unjudged[0 if grave or mild else 1 :]]
    if audit.facts.unit == "sequence" and audit.facts.sequences:
        details.append(SEQUENCES_ONLY)
    if audit.skipped:
        details.append(f"{_count(len(audit.skipped), 'check')} could not run, for lack of columns in the log.")
    if audit.reading.rejected:
        details.append(f"{_count(sum(audit.reading.rejected.values()), 'bad record')} left out.")
    tone: Tone = "critical" if grave else "warning" if mild else "unjudged" if audit.unjudged else "clean"
    return Verdict(tone, headline, tuple(filter(None, details)))


def interval(estimate: Estimate | None) -> str:
    """An estimate as people read it: 0.012 (0.011 to 0.013); without an interval where there is none.

    >>> interval(Estimate(0.012, 0.0105, 0.0131)), interval(None)
    ('0.012 (0.011 to 0.013)', '–')
    """
    if estimate is None:
        return "–"
    if not abs(estimate.low) < float("inf") or not abs(estimate.high) < float("inf"):
        return number(estimate.value, 2)
    return f"{number(estimate.value, 2)} ({number(estimate.low, 2)} to {number(estimate.high, 2)})"


def shares(estimate: Estimate) -> str:
    r"""A share as people read it.

    >>> shares(Estimate(0.24, 0.2, 0.29))
    '24\xa0% (20 to 29)'
    """
    if not abs(estimate.low) < float("inf") or not abs(estimate.high) < float("inf"):
        return percent(estimate.value)
    return f"{percent(estimate.value)} ({number(100 * estimate.low, 2)} to {number(100 * estimate.high, 2)})"


def region_row(region: Region) -> tuple[str, str, str, str]:
    """The trust region, and the shares of sequences inside it, outside it and undecided."""
    name = f"{region.divergence.upper()} ≤ {number(region.threshold)}"
    return name, shares(region.inside), shares(region.outside), shares(region.undecided)


def sentence(text: str) -> str:
    """The text with a capital at its start.

    >>> sentence("drift grows"), sentence("81 tokens"), sentence("")
    ('Drift grows', '81 tokens', '')
    """
    return text[:1].upper() + text[1:]


def _scope(audit: Audit) -> str:
    facts = audit.facts
    if audit.of_numbers:
        whose = f" of {audit.framework}" if audit.framework else ""
        names = ", ".join(audit.course.series)
        return f"Read: {_count(len(facts.steps), 'step')} of a log of numbers{whose} ({names})."
    steps = f" of {_count(len(facts.steps), 'step')}" if facts.steps else ""
    return f"Read: {_count(facts.sequences, 'sequence')}{steps}, {_count(facts.own_tokens, 'token')} of the policy."


def _drift(audit: Audit) -> str:
    if audit.of_numbers:
        return "Judged is the course of the run; numbers by step cannot show whether single tokens are scored right."
    mean = audit.statistics.mean("abs_log")
    if mean is None:
        return (
            "Drift could not be measured: the log lacks the log-probabilities of the engine, of the trainer, or both."
        )
    worst = audit.statistics.sizes.largest
    return f"Engine and trainer differ by {interval(mean)} nats a token on average, by {number(worst, 2)} at the worst."


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _are(many: tuple[object, ...]) -> str:
    return "is" if len(many) == 1 else "are"

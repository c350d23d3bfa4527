"""Whose drift it is, on the page: shares of the causes, drift by age of the weights, and what follows for staleness."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.audit.judge.attribution.shares import USEFUL, AgeClass, Attribution
from holdfast.audit.judge.attribution.whose import Writer
from holdfast.audit.judge.verdict import interval, sentence, shares
from holdfast.report.charts.scales import number
from holdfast.report.page import Markup, element, join, paragraph, section, table
from holdfast.report.words import percent

MOST_ROWS = 60
"""Steps in the table of checkpoints."""


def writers_section(writers: Sequence[Writer]) -> Markup:
    """Which checkpoint is nearest to the engine of each step; nothing where none were given."""
    if not writers:
        return Markup()
    names = list(writers[0].distances)
    rows = [
        (
            "not recorded" if one.step < 0 else str(one.step),
            one.nearest if one.sure else f"not clear; nearest {one.nearest}",
            *(number(one.distances[name], 2) for name in names),
        )
        for one in writers[:MOST_ROWS]
    ]
    shown = table(
        ("step", "weights of", *names),
        rows,
        label="The nearest checkpoint of each step",
        numeric=tuple(range(2, 2 + len(names))),
    )
    more = f" The first {MOST_ROWS} of {len(writers):,} steps." if len(writers) > MOST_ROWS else ""
    lead = "The mean of r²/2 a token between what the engine reported and each checkpoint: the smallest wrote the step."
    return section("Whose weights wrote each step", shown, lead=lead + more)


def attribution_section(found: Attribution | None) -> Markup:
    """A table of causes and one of ages; nothing where no drift is known."""
    if found is None:
        return Markup()
    causes = table(
        ("cause", "share of the drift", "what it is"),
        [(share.cause, shares(share.share), sentence(share.said)) for share in found.shares if share.seen],
        label="Share of the drift by cause",
        numeric=(1,),
    )
    lead = (
        f"Engine and trainer are {number(found.drift.value, 2)} nats a token apart, as the mean of r²/2 over "
        f"{found.tokens:,} tokens, r being the log-ratio. Independent causes add up in it, so the shares add up to one."
    )
    untold = join(paragraph(f"{sentence(text)}.", css="caption") for text in found.missing)
    return section("Whose drift it is", causes, untold, _ages(found), lead=lead)


def _ages(found: Attribution) -> Markup:
    if not found.ages:
        return Markup()
    rows = [
        (words(one), f"{one.tokens:,}", interval(one.drift), interval(one.added), shares(one.ess) if one.ess else "–")
        for one in found.ages
    ]
    shown = table(
        ("updates behind", "tokens", "drift", "added by each update", "effective sample size"),
        rows,
        label="Drift by age of the weights",
        numeric=(1, 2, 3, 4),
    )
    return join((element("h3", "By age of the weights"), shown, paragraph(advice(found))))


def advice(found: Attribution) -> str:
    """How stale rollouts may be, and how large the learning rate, in a sentence or two."""
    half = percent(USEFUL)
    if found.useful_age is None:
        said = f"Even rollouts of the newest weights keep less than {half} of their effective sample size under the "
        said += "weight of whole sequences: weigh or mask by token, or bring engine and trainer closer."
    elif found.ages and found.useful_age < found.ages[-1].last:
        said = f"Rollouts up to {found.useful_age} updates old keep {half} or more of their effective sample size; "
        said += "older ones do not."
    else:
        said = f"All ages that were seen keep {half} or more of their effective sample size."
    if found.learning_rate is not None and found.learning_rate < 1:
        said += f" At {number(found.learning_rate, 2)} times the learning rate the oldest would keep it, too."
    return said


def words(one: AgeClass) -> str:
    """The ages of a class."""
    return str(one.first) if one.first == one.last else f"{one.first} to {one.last}"

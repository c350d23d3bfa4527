"""The tables of an audit: what to set, what it would cost, what every published mask would have rejected."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.audit.judge.advice import SampleAdvice
from holdfast.audit.judge.auditor import Audit
from holdfast.audit.judge.verdict import interval, sentence, shares
from holdfast.audit.measure.estimate import Estimate
from holdfast.audit.read.loaders.loader import ROLLOUT_ONLY
from holdfast.report.charts.scales import number
from holdfast.report.page import Cell, Markup, absent, element, folded, join, paragraph, section, table
from holdfast.report.words import percent

_RULES = {"trm_max": "TRM-Max", "trm_avg": "TRM-Avg", "ln_trm": "LN-TRM"}


def advice_section(advice: SampleAdvice) -> Markup:
    """Thresholds, bounds and the certificate."""
    heading = "What to set, and what it guarantees"
    if advice.advice is None:
        return section(heading, absent(" ".join(f"Not given: {said}" for said in advice.missing)))
    recommended = advice.advice.recommendations.values()
    rules = table(
        ("mask", "setting", "keeps", "at twice the drift", "loses of the signal", "error at most"),
        [
            (
                _RULES.get(r.rule, r.rule),
                ("none is needed; " if r.needed is False else "")
                + ", ".join(f"{k} = {v:.3g}" if isinstance(v, float) else f"{k} = {v}" for k, v in r.settings.items()),
                percent(r.point.acceptance),
                percent(r.acceptance_at_twice),
                percent(r.point.lost_signal),
                number(r.point.error, 2),
            )
            for r in recommended
        ],
        label="Proposed thresholds",
        numeric=(2, 3, 4, 5),
    )
    why = element("ul", *(element("li", r.reason, ".") for r in recommended))
    warned = join(absent(f"{sentence(w)}.") for w in advice.advice.warnings)
    lead = (
        f"From {advice.rollouts:,} rollouts drawn at random ({advice.tokens:,} tokens). "
        "Proposed is what keeps 70 % of the rollouts of a batch that drifts twice as far: the largest threshold with "
        "the smallest error, or, where no error is known, the published one. Where no mask is needed, the setting "
        "rejects nothing."
    )
    return section(heading, rules, warned, folded("Why these", why), _bounds(advice), _certificate(advice), lead=lead)


def _bounds(advice: SampleAdvice) -> Markup:
    kept = table(
        ("mask", "sequences it leaves whole", "bound on the error"),
        [(b.mask, shares(b.acceptance), interval(b.error)) for b in advice.bounds_at],
        label="Error bound under each mask",
        numeric=(1, 2),
    )
    every = table(
        ("bound", "at this sample"),
        [(name, number(value)) for name, value in advice.bounds.items()],
        label="Every bound",
        numeric=(1,),
    )
    parts = [element("h3", "The bound under each mask"), kept]
    if advice.allowed_kl:
        parts.append(
            paragraph(
                "For a bound below 1 at the longest response seen, KL per token would have to stay below ",
                element("strong", number(advice.allowed_kl)),
                " nats at every context.",
                css="caption",
            )
        )
    if advice.bounds:
        parts.append(folded("Every bound without a mask, tightest first (above 1 it says nothing)", every))
    return join(parts)


def _certificate(advice: SampleAdvice) -> Markup:
    certificate = advice.certificate
    if certificate is None:
        return Markup()
    low, high = advice.reward_range or (0.0, 1.0)
    said = [
        element("h3", "Certificate"),
        paragraph(certificate.verdict),
        paragraph(
            "Compared are the trainer's policy and the engine's, on average over the steps of this log; rewards are "
            f"taken to lie in [{low:g}, {high:g}]. Assumed is that {'; that '.join(certificate.assumptions)}.",
            css="caption",
        ),
    ]
    return join(said)


def masks_section(advice: SampleAdvice) -> Markup:
    """What each published mask would have rejected."""
    if not advice.masks:
        return Markup()
    rows = [
        (m.preset, _share_cell(m.sequences), _share_cell(m.tokens))
        for m in sorted(advice.masks, key=lambda m: -m.tokens.value)
    ]
    shown = table(
        ("preset", "sequences rejected whole", "tokens rejected"),
        rows,
        label="What each preset's mask would have rejected",
        numeric=(1, 2),
        sortable=True,
    )
    lead = (
        "Every preset whose mask or weight can reject, at its published settings, run over the same sample. Click a "
        "heading to sort."
    )
    return section("What each published mask would have rejected", shown, lead=lead)


def _share_cell(estimate: Estimate) -> Cell:
    return Cell(shares(estimate), estimate.value)


def unknown_section(audit: Audit, missing: Sequence[str]) -> Markup:
    """What could not be known and why, and the records that were left out."""
    blocks = []
    if audit.skipped:
        rows = [(name, ", ".join(lacking)) for name, lacking in audit.skipped.items()]
        blocks.append(table(("check that did not run", "columns the log lacks"), rows, label="Checks that did not run"))
    said = [sentence(m) for m in (*missing, *audit.reading.notes)]
    if audit.facts.sequences and "trainer_logprobs" not in audit.facts.columns:
        said.append(f"{sentence(ROLLOUT_ONLY)}.")
    if said:
        blocks.append(element("ul", *(element("li", text) for text in said)))
    if audit.reading.rejected:
        counts = [(kind, f"{count:,}") for kind, count in audit.reading.rejected.most_common()]
        blocks += [
            element("h3", "Records left out"),
            table(("why", "records"), counts, label="Records left out", numeric=(1,)),
            folded("The first of them", table(
                ("file", "record", "reason"),
                [(r.path, f"{r.record:,}", r.reason) for r in audit.reading.examples],
                label="Examples of records left out",
                numeric=(1,),
            )),
        ]  # fmt: skip
    return section("What could not be known", *blocks) if blocks else Markup()

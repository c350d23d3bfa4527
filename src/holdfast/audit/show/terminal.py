"""The audit in a terminal: the verdict, what was found and how to mend it, the numbers, and what could not be known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from holdfast.audit.judge.auditor import Audit
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.verdict import REGION_HEADS, Verdict, interval, region_row, shares, verdict_of
from holdfast.audit.measure.statistics.running import ESTIMATORS, Region
from holdfast.audit.show.jsonout import QUANTILES
from holdfast.errors import visible
from holdfast.report.charts.scales import number

STYLES = {
    "critical": "bold red",
    "warning": "bold yellow",
    "info": "cyan",
    "clean": "bold green",
    "unjudged": "bold magenta",
}
_NAMES = {
    "k1": "k1 = −r",
    "k2": "k2 = r²/2",
    "k3": "k3 = e^r − 1 − r",
    "abs_log": "|r|, log-ratio",
    "kl_exact": "exact KL",
    "kl_lower": "KL, at least",
    "tv_lower": "TV (0 to 1), at least",
    "tv_upper": "TV (0 to 1), at most",
}


def print_audit(console: Console, audit: Audit, missing: tuple[str, ...] = ()) -> None:
    """Print all of it; `missing` are the sentences of the sample's advice on what could not be computed."""
    console.print(summary(audit, missing))


def summary(audit: Audit, missing: tuple[str, ...] = ()) -> RenderableType:
    """What `print_audit` prints, for a live display too."""
    parts: list[RenderableType] = [_verdict(verdict_of(audit)), Text()]
    if audit.findings:
        parts += [findings_table(audit.findings), Text()]
    if (numbers := numbers_table(audit)) is not None:
        parts += [numbers, Text()]
    if (whose := _attribution(audit)) is not None:
        parts += [whose, Text()]
    if audit.writers:
        parts += [_writers(audit), Text()]
    if regions := audit.statistics.regions():
        parts += [_regions(regions), Text()]
    parts += _unknown(audit, missing)
    if audit.more:
        parts.append(Text("To know more, log this", "bold"))
        parts += [Padding(line(f"{what}: {text}"), (0, 0, 0, 2)) for what, text in audit.more]
    return Group(*parts)


def line(text: str, style: str = "") -> Text:
    """Text from anywhere: no markup in it acts, no control character reaches the terminal."""
    return Text(visible(text), style=style)


def _verdict(verdict: Verdict) -> Text:
    return Text.assemble(line(verdict.headline, STYLES[verdict.tone]), "\n", line(" ".join(verdict.details)))


def findings_table(findings: Sequence[Finding]) -> RenderableType:
    """A row for each finding: how severe, what was seen, and what to do."""
    table = Table(box=None, show_header=False, padding=(0, 2, 1, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for finding in findings:
        said: list[RenderableType] = [Text.assemble(line(finding.name, "bold"), ": ", line(finding.headline))]
        if finding.severity != "info":
            said.append(Text.assemble(("fix ", "dim"), line(finding.fix)))
        if finding.settings:
            said.append(line(f"settings for {', '.join(finding.settings)}: in the report", "dim"))
        table.add_row(Text(finding.severity, STYLES[finding.severity]), Group(*said))
    return table


def numbers_table(audit: Audit) -> Table | None:
    """The drift by every estimator and its quantiles; None where nothing was measured."""
    means = {name: audit.statistics.mean(name) for name in ESTIMATORS}
    if not any(means.values()):
        return None
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, title="Drift, nats per token", title_justify="left")
    table.add_column("")
    table.add_column(f"estimate (95 % interval over {audit.facts.unit}s)", justify="left")
    for name, mean in means.items():
        if mean is not None:
            table.add_row(_NAMES[name], interval(mean))
    for share in QUANTILES:
        table.add_row(f"|r|, {100 * share:g} % of tokens below", interval(audit.statistics.sizes.quantile(share)))
    table.add_row("|r|, largest", number(audit.statistics.sizes.largest, 3))
    return table


def _attribution(audit: Audit) -> Table | None:
    seen = [share for share in audit.attribution.shares if share.seen] if audit.attribution else []
    if len(seen) < 2:
        return None
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, title="Whose drift it is", title_justify="left")
    table.add_column("")
    table.add_column("share of r²/2", justify="left", no_wrap=True)
    table.add_column("", ratio=1)
    for share in seen:
        table.add_row(share.cause, shares(share.share), share.said)
    return table


def _writers(audit: Audit) -> Table:
    """Runs of steps that one checkpoint wrote."""
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, title="Whose weights wrote", title_justify="left")
    table.add_column("steps")
    table.add_column("weights of", ratio=1, overflow="fold")
    said = [(one.step, one.nearest if one.sure else "not clear") for one in audit.writers]
    for nearest, run in itertools.groupby(said, key=lambda one: one[1]):
        steps = [step for step, _ in run]
        span = f"{steps[0]}" if steps[0] == steps[-1] else f"{steps[0]} to {steps[-1]}"
        table.add_row("not recorded" if steps[0] < 0 else span, line(nearest))
    return table


def _regions(regions: tuple[Region, ...]) -> Table:
    title = "What the engine's likeliest tokens prove of the sequences"
    table = Table(*REGION_HEADS, box=None, padding=(0, 3, 0, 0), pad_edge=False, title=title, title_justify="left")
    for region in regions:
        table.add_row(*region_row(region))
    return table


def _unknown(audit: Audit, missing: tuple[str, ...]) -> list[RenderableType]:
    lines = [f"check {name}: the log has no {', '.join(lacking)}" for name, lacking in audit.skipped.items()]
    lines += [f"finding {f.name}: withheld, it rests on log-probabilities that are wrong" for f in audit.withheld]
    lines += [*missing, *audit.reading.notes]
    bad = [f"{count:,} × {kind}" for kind, count in audit.reading.rejected.most_common(8)]
    bad += [
        f"for example {record.path}, record {record.record}: {record.reason}" for record in audit.reading.examples[:3]
    ]
    parts: list[RenderableType] = []
    for title, said in (("Could not be known", lines), ("Bad records, left out", bad)):
        if said:
            parts.append(Text(title, "bold"))
            parts += [Padding(line(text), (0, 0, 0, 2)) for text in said]
            parts.append(Text())
    return parts

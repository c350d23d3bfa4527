"""Feeds chunks to every check and statistic, and says at any time what they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from holdfast.audit.judge.checks import CHECKS, Check, Facts
from holdfast.audit.judge.finding import SEVERITIES, Finding
from holdfast.audit.measure.sample import Sample
from holdfast.audit.measure.statistics import Statistics
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Chunk
from holdfast.audit.read.reading import Reading


@dataclass(frozen=True)
class Audit:
    """What an audit has to say; everything the page, the JSON and the terminal show comes from here.

    `withheld` are findings that a data error makes worthless; `skipped` maps a check to the columns it lacks, `asked`
    each check that ran to its question.
    """

    facts: Facts
    findings: tuple[Finding, ...]
    withheld: tuple[Finding, ...]
    skipped: dict[str, tuple[str, ...]]
    statistics: Statistics
    sample: Sample
    reading: Reading
    sources: tuple[str, ...] = ()
    asked: dict[str, str] = field(default_factory=dict)


@dataclass
class Auditor:
    """One audit under way."""

    reading: Reading
    checks: Sequence[Check] = field(default_factory=lambda: [check() for check in CHECKS])
    facts: Facts = field(default_factory=Facts)
    statistics: Statistics = field(default_factory=Statistics)
    sample: Sample = field(default_factory=Sample)
    sources: list[str] = field(default_factory=list)

    def feed(self, chunk: Chunk, source: str = "") -> None:
        """Measure one chunk."""
        if len(chunk) == 0:
            return
        view = View(chunk, self.facts.sequences)
        self._count(view)
        for check in self.checks:
            if view.has(*check.needs):
                check.update(view)
        self.statistics.update(view)
        self.sample.update(view)
        if source and source not in self.sources:
            self.sources.append(source)

    def result(self) -> Audit:
        """All findings so far, most severe first, with those withheld that a data error makes worthless."""
        self.facts.logprob_resolution = self.reading.logprob_resolution
        skipped = {c.name: tuple(sorted(c.needs - self.facts.columns)) for c in self.checks}
        found = [f for c in self.checks if not skipped[c.name] for f in c.findings(self.facts)]
        found.sort(key=lambda f: (-SEVERITIES.index(f.severity), f.kind != "data"))
        broken = any(f.invalidates for f in found)
        withheld = tuple(f for f in found if broken and f.kind == "drift")
        return Audit(
            facts=self.facts,
            findings=tuple(f for f in found if f not in withheld),
            withheld=withheld,
            skipped={name: lacking for name, lacking in skipped.items() if lacking},
            statistics=self.statistics,
            sample=self.sample,
            reading=self.reading,
            sources=tuple(self.sources),
            asked={c.name: c.asks for c in self.checks if not skipped[c.name]},
        )

    def _count(self, view: View) -> None:
        facts, chunk = self.facts, view.chunk
        facts.sequences += len(chunk)
        facts.tokens += chunk.token_count
        facts.own_tokens += int(view.own.sum())
        facts.measured_tokens += int(view.measured.sum())
        facts.columns |= set(chunk.present)
        facts.longest = max(facts.longest, int(view.lengths.max()))
        if view.has("step"):
            facts.steps |= {int(s) for s in set(view.step.tolist()) if s >= 0}

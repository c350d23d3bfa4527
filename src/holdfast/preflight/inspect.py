"""The whole preflight: sample, score, switch, sync, judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from holdfast.audit.judge.advice import SampleAdvice, advise_on
from holdfast.audit.judge.auditor import Audit, Auditor
from holdfast.audit.judge.checks.lights import KL_DENSE, KL_EXPERTS, KL_HIGH
from holdfast.audit.judge.finding import SEVERITIES, Finding, at_least
from holdfast.audit.read.columns import pack
from holdfast.audit.read.reading import Reading as LogReading
from holdfast.errors import EngineError
from holdfast.preflight import causes as switched
from holdfast.preflight.bench import Bench
from holdfast.preflight.causes import Cause
from holdfast.preflight.findings import findings_of
from holdfast.preflight.gap import Gap, Row, by_entropy, gap_of
from holdfast.preflight.numerics import numerics
from holdfast.preflight.observe import Observation
from holdfast.preflight.plan import Plan
from holdfast.preflight.served import own_defaults
from holdfast.preflight.stability import Stability, stability
from holdfast.preflight.sync import SyncCheck, check_sync
from holdfast.preflight.thresholds import Proposal, propose


@dataclass(frozen=True)
class Preflight:
    """Everything that was seen; `audit` is that of the sampled log, with the findings of the switches among its own.

    `experts`: the model is a mixture of experts.
    """

    plan: Plan
    audit: Audit
    advice: SampleAdvice
    gap: Gap
    entropy: tuple[Row, ...]
    causes: tuple[Cause, ...]
    stability: Stability
    sync: SyncCheck
    proposal: Proposal | None
    notes: tuple[str, ...] = ()
    experts: bool = False

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Most severe first."""
        return self.audit.findings

    @property
    def headline(self) -> str:
        """The preflight in a sentence."""
        worst = self.findings[0] if self.findings else None
        if worst is not None and worst.severity == "critical":
            return f"Do not start: {worst.headline}."
        if worst is not None and worst.severity == "warning":
            return f"Look at this first: {worst.headline}."
        kind, usual = ("mixtures of experts", KL_EXPERTS) if self.experts else ("dense models", KL_DENSE)
        return (
            f"Ready: engine and trainer differ by {self.gap.size.value:.2g} nats a token (k3 {self.gap.kl.value:.2g}; "
            f"healthy engines show up to {usual:g} for {kind}, and more than {KL_HIGH:g} is a problem)."
        )

    @property
    def tone(self) -> str:
        """clean, warning or critical."""
        worst = self.findings[0].severity if self.findings else "info"
        return "clean" if worst == "info" else worst

    def exit_code(self, fail_on: str = "warning") -> int:
        """1 where a finding reaches this severity, else 0."""
        return int(fail_on in SEVERITIES and any(at_least(f.severity, fail_on) for f in self.findings))


def preflight(bench: Bench) -> Preflight:
    """Look at the engine in every way that it allows; the bench's engine is closed afterwards.

    Raises:
        ConfigError: settings that cannot be honoured.
        EngineError: the engine cannot be started, gives no log-probabilities, or dies.
    """
    try:
        base = bench.observe("sampling as the run will")
        audit, advice = _audited(base)
        stable = stability(bench, base)
        found = [*_switched(bench, base), stable.batch] if bench.plan.switches else [stable.batch]
        sync = check_sync(bench)
        if bench.plan.switches:
            found += numerics(bench, base)
    finally:
        bench.close()
    gap = gap_of(base.view)
    precision = None if bench.settings.kind == "server" else bench.settings.precision
    findings = findings_of(audit, gap, found, sync, stable, precision, bench.plan.switches)
    proposal, notes = _proposal(bench, base, findings)
    return Preflight(
        plan=bench.plan,
        audit=replace(audit, findings=findings, unjudged=(), framework=bench.plan.framework),
        advice=advice,
        gap=gap,
        entropy=tuple(by_entropy(base.view)),
        causes=tuple(found),
        stability=stable,
        sync=sync,
        proposal=proposal,
        notes=notes,
        experts=bool(getattr(bench.model.config.get_text_config(), "num_experts_per_tok", None)),
    )


def _switched(bench: Bench, base: Observation) -> Sequence[Cause]:
    """Everything that is switched on the engine as it runs."""
    found = [
        switched.temperature_told(bench, base),
        switched.temperature_set(bench, base),
        switched.truncation(bench, base),
        switched.penalties(bench, base),
        own_defaults(bench, base),
        switched.template(bench, base),
        switched.prefix_caching(bench, base),
    ]
    return [cause for cause in found if cause is not None]


def _audited(base: Observation) -> tuple[Audit, SampleAdvice]:
    """The sampled responses are a log like any other."""
    auditor = Auditor(LogReading())
    for chunk in pack(base.rollouts):
        auditor.feed(chunk)
    audit = auditor.result()
    if not audit.facts.measured_tokens:
        raise EngineError(
            "no token has a usable log-probability of both engine and trainer: the engine reports none, or numbers "
            "that are no log-probabilities"
        )
    return audit, advise_on(audit)


def _proposal(bench: Bench, base: Observation, findings: Sequence[Finding]) -> tuple[Proposal | None, tuple[str, ...]]:
    """Thresholds, where what they would rest on can be trusted."""
    broken = [f.name for f in findings if f.invalidates or f.spoils_advice or f.severity == "critical"]
    if broken:
        return None, (
            f"no thresholds are proposed: they would be made of drift that comes from a fault ({', '.join(broken)}); "
            "mend it and run the preflight again",
        )
    plan = bench.plan
    return propose(
        base.rollouts,
        length=plan.planned_length,
        staleness=plan.planned_staleness,
        update_kl=plan.update_kl,
        framework=plan.framework,
        seed=plan.config.seed,
    ), ()

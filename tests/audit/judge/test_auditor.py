"""From chunks to an audit: order of findings, what is withheld, what is skipped."""

from dataclasses import dataclass, field

from holdfast.audit.judge.auditor import Auditor
from holdfast.audit.judge.finding import Finding, at_least
from holdfast.audit.read.columns import chunk_of
from holdfast.audit.read.reading import Reading
from holdfast.types import Rollout

BOTH = Rollout((1,), (2, 3), (-1.0, -2.0), (-1.0, -2.5), step=1)


@dataclass
class Says:
    """A check that always says the same."""

    name: str
    kind: str = "drift"
    severity: str = "warning"
    invalidates: bool = False
    needs: frozenset = frozenset()
    asks: str = ""
    seen: list = field(default_factory=list)

    def update(self, view):
        self.seen.append(len(view.chunk))

    def findings(self, facts):
        yield Finding(self.name, self.kind, self.severity, "", "", "", invalidates=self.invalidates)


def audit(*checks, rollouts=(BOTH,)):
    auditor = Auditor(Reading(), checks=list(checks))
    auditor.feed(chunk_of(rollouts), "a.parquet")
    return auditor.result()


def test_most_severe_first_and_data_before_drift():
    got = audit(Says("a"), Says("b", kind="data"), Says("c", severity="critical"), Says("d", severity="info"))
    assert [f.name for f in got.findings] == ["c", "b", "a", "d"]


def test_a_data_error_withholds_what_is_built_on_it():
    got = audit(Says("drift"), Says("broken", kind="data", invalidates=True), Says("settings", kind="training"))
    assert [f.name for f in got.findings] == ["broken", "settings"]
    assert [f.name for f in got.withheld] == ["drift"]


def test_a_check_without_its_columns_is_skipped_and_named():
    check = Says("exact", needs=frozenset({"kl_exact"}))
    got = audit(check)
    assert check.seen == []
    assert got.findings == ()
    assert got.skipped == {"exact": ("kl_exact",)}


def test_facts_of_the_run():
    facts = audit(rollouts=(BOTH, Rollout((1,), (4, 5, 6), response_mask=(True, True, False), step=9))).facts
    assert (facts.sequences, facts.tokens, facts.own_tokens, facts.measured_tokens) == (2, 5, 4, 2)
    assert facts.steps == {1, 9}
    assert facts.longest == 3


def test_severities_compare():
    assert at_least("critical", "warning")
    assert at_least("warning", "warning")
    assert not at_least("info", "warning")

"""What a check says: a finding, with the numbers behind it, where it is, what it means and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from holdfast.audit.measure.estimate import Estimate

Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")
Kind = Literal["data", "drift", "training"]
"""data: the log itself is wrong, so nothing built on it can be trusted. drift: engine and trainer disagree.
training: the run's own settings or progress."""


@dataclass(frozen=True)
class Where:
    """The places a finding was seen at, worst first, at most ten of each; empty where it is everywhere.

    `sequences` count from 0 in reading order; `positions` are (sequence, token position in the response).
    """

    steps: tuple[int, ...] = ()
    sequences: tuple[int, ...] = ()
    positions: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Finding:
    """One thing wrong, or worth knowing, with its fix.

    `name` is the check's. `headline` says what was seen in one sentence with its number; `meaning` what that does to
    training; `fix` what to change, and `settings` the configuration line per framework. A finding that `invalidates`
    makes advice built on log-ratios worthless, and the audit then withholds it, with what other checks say of drift;
    one that `spoils_advice` withholds bounds, certificates and thresholds only.
    """

    name: str
    kind: Kind
    severity: Severity
    headline: str
    meaning: str
    fix: str
    evidence: Mapping[str, float | int | str | Estimate] = field(default_factory=dict)
    where: Where = Where()
    settings: Mapping[str, str] = field(default_factory=dict)
    invalidates: bool = False
    spoils_advice: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def at_least(severity: Severity, limit: Severity) -> bool:
    """Whether a severity reaches a limit."""
    return SEVERITIES.index(severity) >= SEVERITIES.index(limit)

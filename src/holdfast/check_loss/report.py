"""All laws against one loss, and what there is to say of them: text for a terminal, a dictionary for a machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from holdfast.check_loss.cases import Loss, evaluate, make_case, on_policy
from holdfast.check_loss.laws import (
    Divisor,
    Finding,
    action_independent_law,
    extreme_law,
    homogeneous_law,
    masked_law,
    on_policy_law,
    order_law,
    padding_law,
)
from holdfast.check_loss.rows import Below, Limits, Match, identify
from holdfast.check_loss.split import split_law
from holdfast.errors import DataError

_BELOW = {
    "old": "the ratio is θ/old: the engine's own log-probabilities change nothing",
    "rollout": "the ratio is θ/rollout: the policy below it is the one that sampled",
    "both": "old and rollout log-probabilities both count: a ratio θ/old, corrected for the engine",
    "none": "there is no ratio: old and rollout log-probabilities change nothing",
}


@dataclass(frozen=True)
class Report:
    """What was found about a loss."""

    loss: Loss
    findings: tuple[Finding, ...]
    divisor: Divisor | None
    below: Below
    limits: Limits
    rows: tuple[Match, ...]

    @property
    def broken(self) -> list[Finding]:
        """The laws that it breaks."""
        return [finding for finding in self.findings if finding.status == "broken"]

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "loss": self.loss.name,
            "shape": self.loss.shape,
            "settings": {key: str(value) for key, value in self.loss.settings.items()},
            "broken": [finding.law for finding in self.broken],
            "findings": [asdict(finding) for finding in self.findings],
            "divisor": None if self.divisor is None else asdict(self.divisor),
            "ratio_below": self.below,
            "limits": asdict(self.limits),
            "rows": [asdict(match) | {"same": match.same} for match in self.rows],
        }

    def text(self) -> str:
        """A line per law, then what the loss is."""
        marks = {"holds": "ok    ", "broken": "BROKEN", "note": "note  ", "not judged": "-     "}
        lines = [f"{self.loss.name} as --shape {self.loss.shape} calls it", ""]
        lines += [f"  {marks[f.status]}  {f.law.replace('_', ' ')}: {f.says}" for f in self.findings]
        lines += ["", f"  {_BELOW[self.below]}", f"  {self.named()}"]
        count = len(self.broken)
        lines += ["", "no law is broken" if not count else f"{count} law{'s' * (count > 1)} broken"]
        return "\n".join(lines)

    def named(self) -> str:
        """Which rows of the table it is, or is near."""
        if not self.rows:
            return "no row of the table could be compared with it"
        if self.rows[0].same:
            also = [f"`{match.row}`" for match in self.rows[1:]]
            by = "" if self.divisor is None or self.rows[0].survivors else f", divided by {self.divisor}"
            return f"this is {self.rows[0]}{by}" + (f" (the same here: {', '.join(also)})" if also else "")
        near = "; ".join(f"{match}, {match.distance:.1%} off" for match in self.rows)
        return f"no row of the table is this loss; the nearest: {near}"


def check_loss(loss: Loss) -> Report:
    """Run every law.

    Raises:
        DataError: the loss cannot be judged: it raises, returns something else than one number with a gradient, or is
            not finite on ordinary rollouts.
    """
    for case in (on_policy(make_case(seed=0)), make_case(seed=0)):
        value, gradient = evaluate(loss, case)
        if not (value.isfinite() and gradient.isfinite().all()):
            what = "value" if not value.isfinite() else "gradient"
            raise DataError(f"{loss.name} has a {what} that is not finite on ordinary rollouts: it cannot be judged")
    first, divisor = on_policy_law(loss)
    laws: tuple[Callable[[Loss], Finding], ...] = (
        homogeneous_law, masked_law, padding_law, order_law, split_law, action_independent_law, extreme_law,
    )  # fmt: skip
    findings = [first, *(_judged(law, loss) for law in laws)]
    below, limits, rows = identify(loss, divisor)
    return Report(loss, tuple(findings), divisor, below, limits, tuple(rows))


def _judged(law: Callable[[Loss], Finding], loss: Loss) -> Finding:
    """A loss that raises inside one law breaks that law, not the check."""
    try:
        return law(loss)
    except DataError as error:
        return Finding(law.__name__.removesuffix("_law"), "broken", str(error))

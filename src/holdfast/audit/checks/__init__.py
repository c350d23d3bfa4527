"""The checks, data errors first; a new check is one file and one entry here."""

from holdfast.audit.checks.check import Check, Facts
from holdfast.audit.checks.drift_with_depth import DriftWithDepth
from holdfast.audit.checks.invalid_logprobs import InvalidLogprobs

CHECKS: tuple[type[Check], ...] = (InvalidLogprobs, DriftWithDepth)

__all__ = ["CHECKS", "Check", "Facts"]

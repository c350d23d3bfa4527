"""A measured number with its interval."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean over what was sampled and its 95 % bootstrap interval over prompts."""

    value: float
    low: float
    high: float

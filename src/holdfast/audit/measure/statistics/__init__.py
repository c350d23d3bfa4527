"""Running statistics of a whole run, in bounded memory."""

from holdfast.audit.measure.statistics.running import Statistics

__all__ = ["Statistics"]

"""A guard beside a run: the audit's checks on its last steps, alarms for its log, and a halt where one is asked for.

Numbers by step and rollout files in; alarms out. The trainer and the plug-ins call it; it knows none of them.
"""

from holdfast.guard.settings import GuardSettings

__all__ = ["GuardSettings"]

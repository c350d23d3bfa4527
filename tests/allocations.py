"""How much memory a piece of code takes at its worst, from the allocator's own log: the same on every machine."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most that torch held on the CPU at any time in `work`, over what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        kept = work()
    events = [event for event in log.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    del kept
    return most

"""Settings of a composed verl config that do not do what they say: found, named, with a fix. Nothing imports verl.

Each trap is a function of the config (an OmegaConf DictConfig, or anything with the same attributes) that yields what
it finds; facts are about verl 0.9.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from holdfast.integrations.verl.check import correction, losses, ours, registered
from holdfast.integrations.verl.check.trap import Trap

TRAPS: tuple[Callable[[Any], Iterator[Trap]], ...] = (
    registered.unknown_names,
    correction.dropped_in_bypass,
    correction.without_logprobs,
    correction.refused_late,
    correction.inverted_bounds,
    correction.wrong_scale,
    correction.rejected_in_baseline,
    losses.dead_clip_ratio,
    losses.aggregation,
    losses.split_dependent,
    losses.truncated_support,
    losses.unread_precision,
    ours.read_by_nobody,
    ours.fixed_length,
    ours.other_advantage,
    ours.one_for_all,
    ours.idle_or_twice,
    ours.distilled_away,
)


def find(config: Any) -> list[Trap]:
    """Every trap in a composed `main_ppo` config, in the order of the table above."""
    return [trap for look in TRAPS for trap in look(config)]

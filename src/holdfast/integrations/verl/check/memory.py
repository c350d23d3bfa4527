"""What level 2 gathers before each optimiser step, estimated from the config."""

from __future__ import annotations

from typing import Any

from holdfast.integrations.verl.gather import bytes_per_token
from holdfast.objectives.objective import Objective
from holdfast.objectives.whole_step import whole_step_parts


def gather_bytes(config: Any, objective: Objective) -> int:
    """Bytes on each GPU, for a moment, if every response is as long as allowed; 0 where nothing is gathered."""
    if not whole_step_parts(objective):
        return 0
    sequences = config.actor_rollout_ref.actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n
    return bytes_per_token(objective) * sequences * config.data.max_response_length


def gather_note(config: Any, objective: Objective) -> str:
    """A line for `Objective.explain`, empty where nothing is gathered."""
    if not (size := gather_bytes(config, objective)):
        return ""
    parts = ", ".join(whole_step_parts(objective))
    amount = f"{size / 2**30:.2g} GiB" if size >= 2**30 else f"{size / 2**20:.2g} MiB"
    return (
        f"\n  Note: {parts} looks at the whole optimiser step: up to {amount} on each GPU for a moment "
        f"({bytes_per_token(objective)} bytes a token, padded to the longest response), before the first micro-batch"
    )

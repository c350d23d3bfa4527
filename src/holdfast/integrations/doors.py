"""What the losses that other trainers call have in common: what reaches them, and which objectives that is enough for.

A framework hands its loss a step, a micro-batch or one sequence. An objective that needs a field which never arrives,
or a statistic of sequences that are elsewhere, is refused by name before it trains on something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from holdfast.errors import ConfigError, DataError
from holdfast.integrations.turns import turn_ids
from holdfast.objectives.objective import Objective
from holdfast.objectives.parts.penalties import EntropyBonus
from holdfast.objectives.presets import preset
from holdfast.objectives.whole_step import whole_step_parts
from holdfast.types import Batch, Counts

ALWAYS = frozenset({"turn_ids", "sequence_ids"})
"""Fields that are made here from the mask and the order."""


@dataclass(frozen=True)
class Door:
    """A framework's hook: which optional fields come with it, and how much of the step.

    `sees` is "step" (all sequences of the optimiser step), "part" (some of them) or "sequence" (one).
    """

    framework: str
    gives: frozenset[str]
    sees: str

    def objective(self, chosen: str | Objective, settings: Mapping[str, Any]) -> Objective:
        """The objective, if the hook is enough for it.

        Raises:
            ConfigError: a field that never arrives, a statistic of the whole step, or a coefficient that changes.
        """
        objective = preset(chosen, **settings) if isinstance(chosen, str) else chosen
        if not isinstance(chosen, str) and settings:
            raise ConfigError("settings belong to a preset's name; change an Objective with objective.with_(...)")
        lacking = sorted(objective.needs - self.gives - ALWAYS)
        if lacking:
            raise ConfigError(
                f"{self.framework}: {objective.name!r} needs {', '.join(lacking)}, which its loss is not given; it is "
                f"given {', '.join(sorted(self.gives)) or 'log-probabilities and advantages only'}"
            )
        if self.sees != "step" and (parts := whole_step_parts(objective)):
            raise ConfigError(
                f"{self.framework}: {objective.name!r}: {', '.join(parts)} looks at the whole optimiser step, and "
                f"{self.framework} hands its loss {'one sequence' if self.sees == 'sequence' else 'a part of it'}"
            )
        if any(isinstance(part, EntropyBonus) and part.adapt > 0 for part in objective.penalties):
            raise ConfigError(
                f"{self.framework}: {objective.name!r} changes its entropy coefficient after every step, and nothing "
                "here is told when one ends"
            )
        return objective

    def in_its_units(self, objective: Objective) -> Objective:
        """The objective as a plain sum over tokens, for a framework that divides by itself.

        Raises:
            ConfigError: it has penalties, which would not be divided, or a mean over what its masks kept.
        """
        if objective.penalties:
            names = ", ".join(part.kind() for part in objective.penalties)
            raise ConfigError(
                f"{self.framework}: {objective.name!r} has {names}, and the framework's division is not known to its "
                "loss: use the framework's own penalty, or a preset without one"
            )
        if objective.normalize.over != "all":
            raise ConfigError(f"{self.framework}: {objective.name!r} takes its mean over accepted tokens: over = 'all'")
        return objective.with_(normalize=replace(objective.normalize, reduction="token_mean", length=None))


ONE = Counts(sequences=torch.tensor(1), tokens=torch.tensor(1))
"""The counts under which a mean over tokens is their sum."""


def batch_of(mask: Bool[Tensor, "B T"], advantages: Tensor, **given: Tensor | None) -> Batch:
    """A batch with what is given, and what follows from the mask.

    Raises:
        DataError: a log-probability that is not given for every response token.
    """
    for name, value in given.items():
        if value is not None and value.shape != mask.shape:
            raise DataError(f"{name} has shape {tuple(value.shape)}, the mask {tuple(mask.shape)}: they must be equal")
    return Batch(
        advantages=torch.where(mask, advantages, 0) if advantages.ndim == 2 else advantages,
        response_mask=mask,
        turn_ids=turn_ids(mask),
        sequence_ids=torch.arange(len(mask), device=mask.device),
        **given,
    )


def padded(rows: Sequence[Tensor], dtype: torch.dtype | None = None) -> Shaped[Tensor, "B T"]:
    """Rows of different lengths as one tensor, zeros behind; gradients reach the rows."""
    chosen = [row if dtype is None else row.to(dtype) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True)


def plain(metrics: Mapping[str, Tensor], prefix: str = "holdfast/") -> dict[str, float]:
    """Metrics as numbers under our name."""
    return {f"{prefix}{name}": float(value) for name, value in metrics.items()}

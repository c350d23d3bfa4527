"""A copy of what an update changes, to put it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from holdfast.objectives.objective import Objective
from holdfast.train.update import Updater


@dataclass(frozen=True)
class Snapshot:
    """What an update changes: trained weights, the optimiser's state, the objective's own (a target's coefficient)."""

    weights: tuple[Tensor, ...]
    optimizer: Mapping[Any, Mapping[str, Any]]
    objective: Objective

    @staticmethod
    def of(updater: Updater) -> Snapshot:
        """A copy; it takes as much memory as the trained weights and the optimiser's state."""
        state = {
            parameter: {name: v.clone() if isinstance(v, Tensor) else v for name, v in values.items()}
            for parameter, values in updater.optimizer.state.items()
        }
        return Snapshot(tuple(p.detach().clone() for p in updater.parameters), state, updater.objective)

    @torch.no_grad()
    def put_back(self, updater: Updater) -> None:
        """Bit for bit; the gradients are zero, as after any update."""
        for parameter, kept in zip(updater.parameters, self.weights, strict=True):
            parameter.copy_(kept)
        state = updater.optimizer.state
        for parameter in [parameter for parameter in state if parameter not in self.optimizer]:
            del state[parameter]
        for parameter, values in self.optimizer.items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    state[parameter][name].copy_(value)
                else:
                    state[parameter][name] = value
        updater.objective, updater.moved = self.objective, False

"""What a run says about its objective where people look for it: model card, trainer_state.json."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from holdfast.integrations.trl.records import new_run
from holdfast.objectives.objective import Objective
from holdfast.objectives.table import TABLE

STATE = "HoldfastObjective"
"""The key among the states of callbacks in trainer_state.json."""


class Remember(TrainerCallback):
    """Writes the objective and the run's name into the trainer's state, and takes them from a checkpoint."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """A resumed run keeps its name and adaptive coefficients; another objective's checkpoint gives neither."""
        saved = state.stateful_callbacks.get(STATE) or {}
        self.trainer.objective = _resumed(self.trainer.objective, saved.get("objective"))
        self.trainer.run = saved.get("run") or self._everyones(new_run())
        state.stateful_callbacks[STATE] = entry(self.trainer.objective, self.trainer.run)

    def _everyones(self, run: str) -> str:
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([run])[0]


def entry(objective: Objective, run: str) -> dict[str, Any]:
    """What trainer_state.json says: plain data, and the formula with its numbers."""
    return {"run": run, "objective": objective.to_dict(), "explain": objective.explain()}


def add_objective(card: Path, objective: Objective) -> None:
    """Append the objective, with its numbers and papers, to a model card that TRL has just written."""
    rows = [TABLE[name] for name in objective.name.split("+") if name in TABLE]
    papers = [f"- {row.title}: {row.paper}, {row.equation}" for row in rows]
    text = ["", "## Objective", "", "```text", objective.explain(), "```", ""]
    text += ["Where its parts are from:", "", *papers, ""] if papers else []
    with card.open("a", encoding="utf-8") as file:
        file.write("\n".join(text))


def _resumed(objective: Objective, saved: dict[str, Any] | None) -> Objective:
    """Adaptive coefficients as the checkpoint left them, where it was made with this objective."""
    if saved is None or saved["name"] != objective.name:
        return objective
    return dataclasses.replace(objective, penalties=Objective.from_dict(saved).penalties)

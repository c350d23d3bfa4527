"""The guard as a callback of any TRL trainer: alarms into its log, a halt where one is asked for."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from holdfast.errors import ConfigError
from holdfast.guard.settings import NO_BRAKE, GuardSettings
from holdfast.integrations.trl.records import FOLDER


class GuardCallback(TrainerCallback):
    """The audit's checks on the last logged steps: `trainer.add_callback(GuardCallback(halt_on="critical"))`.

    Settings are those of `GuardSettings`, counted in logged steps. Alarms are warnings and numbers `guard/…` in
    `trainer_state.json`; `attach(trainer)` puts the callback before the trackers', which then have them too. With a
    `HoldfastGRPOTrainer` that writes rollouts they are looked at as well. Only the main process looks; evidence is in
    OUTPUT_DIR/_guard.

    Raises:
        ConfigError: a setting out of its range, or a brake, which only our trainer has.
    """

    def __init__(
        self,
        first: int = 20,
        last: int = 80,
        every: int = 1,
        confirm: int = 3,
        halt_on: str = "never",
        brake: str = "off",
    ) -> None:
        if brake != "off":
            raise ConfigError(f"GuardCallback(brake={brake!r}): {NO_BRAKE.format('TRL')}")
        self.settings = GuardSettings(first, last, every, confirm, halt_on)
        self.guard: Any = None

    def attach(self, trainer: Any) -> GuardCallback:
        """Add this to a trainer before its trackers' callbacks, so that they log the alarms; returns itself."""
        trainer.add_callback(self)
        callbacks = trainer.callback_handler.callbacks
        callbacks.insert(0, callbacks.pop())
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Begin, with what a resumed run has logged before."""
        from holdfast.guard.guard import Guard

        folder = Path(args.output_dir or ".")
        self.guard = Guard(self.settings, folder / "_guard", "TRL", rollouts=folder / FOLDER, after=time.time())
        for record in state.log_history:
            self.guard.numbers(int(record["step"]), record)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> Any:
        """Look after each line of the training's log."""
        if self.guard is None or logs is None or not state.is_world_process_zero or "loss" not in logs:
            return control
        self.guard.numbers(state.global_step, logs)
        look = self.guard.look(state.global_step)
        for finding in look.fresh:
            warnings.warn(
                f"guard, {finding.severity}, step {state.global_step}: {finding.headline}. {finding.fix}", stacklevel=2
            )
        for text in (*look.said, *([f"guard: the evidence is in {look.page}"] if look.page else [])):
            warnings.warn(text, stacklevel=2)
        logs.update(look.values)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(look.values)
        if look.halt:
            control.should_training_stop = control.should_save = True
        return control

"""The guard beside TRL's own trainer and ours: alarms in its log, a halt, trackers that see them."""

import warnings

import pytest
from transformers import TrainerCallback
from trl import GRPOTrainer

from holdfast.errors import ConfigError
from holdfast.guard import guard as module
from holdfast.integrations.trl import GuardCallback
from integrations.trl import runs

pytestmark = pytest.mark.filterwarnings("ignore")


class Tracker(TrainerCallback):
    """What a tracker gets to see."""

    def __init__(self):
        self.lines = []

    def on_log(self, args, state, control, logs=None, **others):
        self.lines.append(dict(logs or {}))


@pytest.fixture
def broken(monkeypatch):
    """Losses that are no numbers, as the guard is told them."""
    taken = module.Guard.numbers

    def numbers(self, step, values):
        taken(self, step, dict(values) | {"loss": float("nan")})

    monkeypatch.setattr(module.Guard, "numbers", numbers)


def trained(folder, callback, tracker=None, **settings):
    trainer = GRPOTrainer(
        runs.model(),
        runs.small_digits,
        runs.config(folder, **settings),
        runs.PROMPTS,
        processing_class=runs.TOKENIZER,
        callbacks=[tracker] if tracker else None,
    )
    callback.attach(trainer)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.train()
    return trainer, [str(one.message) for one in said]


def test_a_healthy_run_has_no_alarm(tmp_path):
    trainer, said = trained(tmp_path, GuardCallback(halt_on="warning"))
    assert trainer.state.global_step == 4
    assert [line["guard/worst"] for line in trainer.state.log_history if "loss" in line] == [0.0] * 4
    assert not [text for text in said if text.startswith("guard")]


def test_an_alarm_reaches_state_and_trackers_and_halts(tmp_path, broken):
    tracker = Tracker()
    trainer, said = trained(tmp_path, GuardCallback(confirm=1, halt_on="critical"), tracker)
    assert trainer.state.global_step == 3
    assert trainer.state.log_history[2]["guard/not_finite"] == 2.0
    assert [line for line in tracker.lines if line.get("guard/not_finite") == 2.0]
    assert [text for text in said if text.startswith("guard, critical, step 3: ")]
    assert (tmp_path / "_guard" / "step_0003" / "report.html").is_file()
    assert (tmp_path / "checkpoint-3").is_dir()


def test_without_a_halt_the_run_goes_on(tmp_path, broken):
    trainer, said = trained(tmp_path, GuardCallback(confirm=1))
    assert trainer.state.global_step == 4
    assert len([text for text in said if text.startswith("guard, critical")]) == 1


def test_bad_settings_are_named():
    with pytest.raises(ConfigError, match=r"guard\.halt_on = 'info'"):
        GuardCallback(halt_on="info")
    with pytest.raises(ConfigError, match=r"GuardCallback\(brake='certificate'\): TRL cannot take a step back"):
        GuardCallback(brake="certificate")

"""Trackers are optional, get numbers under grouped names and a few rollouts, and say what to install."""

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

from holdfast.errors import ConfigError
from holdfast.train.keep.folder import RunFolder
from holdfast.train.settings.configfile import build_config
from holdfast.train.show.samples import Samples
from holdfast.train.show.trackers import Trackers

RECORD = {"step": 3, "entropy": 0.5, "eval_reward": 0.25, "warnings": ["x"], "bounds": {"mixed": 1.0}, "tokens": 7}
GROUPED = {"train/entropy": 0.5, "eval/reward": 0.25, "bounds/mixed": 1.0, "train/tokens": 7.0}
SAMPLES = Samples(("prompt", "reward"), (("1+1=\n|", 1.0), ("2+2=", 0.0)))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_hosted_trackers_get_the_scalars(name, monkeypatch, tmp_path):
    calls = []
    module = ModuleType(name)
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    module.init = lambda **options: calls.append(("init", options["project"], options["name"], options.get("dir")))
    module.Table = lambda columns, data: ("table", columns, data)
    module.log = lambda values, step: calls.append(("log", step, values))
    module.finish = lambda: calls.append(("finish",))
    monkeypatch.setitem(sys.modules, name, module)
    trackers = Trackers(build_config({"log": {"trackers": [name]}}), RunFolder(tmp_path / "run"))
    trackers.log(RECORD, lambda: SAMPLES)
    trackers.close()
    table = ("table", ["prompt", "reward"], [["1+1=\n|", 1.0], ["2+2=", 0.0]])
    where = str(tmp_path / "run") if name == "wandb" else None
    assert calls == [
        ("init", "holdfast", "run", where), ("log", 3, GROUPED), ("log", 3, {"rollouts": table}), ("finish",),
    ]  # fmt: skip
    if name == "trackio":
        assert os.environ["TRACKIO_DIR"] == str(tmp_path / "run" / "trackio")


def test_tensorboard_gets_the_scalars(monkeypatch, tmp_path):
    calls = []
    add = calls.append
    writer = SimpleNamespace(
        add_scalar=lambda *call: add(call), add_text=lambda *call: add(call), close=lambda: add("closed")
    )
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = lambda folder: calls.append(folder) or writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    trackers = Trackers(build_config({"log": {"trackers": ["tensorboard"]}}), RunFolder(tmp_path))
    trackers.log(RECORD, lambda: SAMPLES)
    trackers.close()
    text = "|prompt|reward|\n|-|-|\n|1+1= \\||1.0|\n|2+2=|0.0|"
    numbers = [(name, value, 3) for name, value in GROUPED.items()]
    assert calls == [str(tmp_path / "tensorboard"), *numbers, ("rollouts", text, 3), "closed"]


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_missing_package_is_named(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    with pytest.raises(ConfigError, match=f"needs the package {name}: pip install {name}"):
        Trackers(build_config({"log": {"trackers": [name]}}), RunFolder(tmp_path))


def test_a_tracker_that_fails_is_said_once_and_ends_nothing(monkeypatch, tmp_path):
    def fails(*arguments, **options):
        raise ConnectionError("no network")

    module = ModuleType("wandb")
    module.init, module.log, module.finish = lambda **options: None, fails, fails
    monkeypatch.setitem(sys.modules, "wandb", module)
    trackers = Trackers(build_config({"log": {"trackers": ["wandb"]}}), RunFolder(tmp_path / "run"))
    assert trackers.log(RECORD) == ["the tracker wandb failed (no network); metrics.jsonl has every step"]
    assert trackers.log(RECORD) == []

    def breaks():
        raise ValueError("no text")

    assert trackers.log(RECORD, breaks) == [
        "the table of rollouts in wandb failed (no text); metrics.jsonl has every step"
    ]
    trackers.close()

"""Trackers are optional, get plain numbers only, and say what to install."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from holdfast.errors import ConfigError
from holdfast.train.keep.folder import RunFolder
from holdfast.train.settings.configfile import build_config
from holdfast.train.show.trackers import Trackers

RECORD = {"step": 3, "entropy": 0.5, "warnings": ["x"], "bounds": {"linear": 1.0}, "tokens": 7}


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_hosted_trackers_get_the_scalars(name, monkeypatch, tmp_path):
    calls = []
    module = ModuleType(name)
    module.init = lambda **options: calls.append(("init", options["project"], options["name"]))
    module.log = lambda values, step: calls.append(("log", step, values))
    module.finish = lambda: calls.append(("finish",))
    monkeypatch.setitem(sys.modules, name, module)
    trackers = Trackers(build_config({"log": {"trackers": [name]}}), RunFolder(tmp_path / "run"))
    trackers.log(RECORD)
    trackers.close()
    assert calls == [("init", "holdfast", "run"), ("log", 3, {"entropy": 0.5, "tokens": 7.0}), ("finish",)]


def test_tensorboard_gets_the_scalars(monkeypatch, tmp_path):
    calls = []
    writer = SimpleNamespace(add_scalar=lambda *call: calls.append(call), close=lambda: calls.append("closed"))
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = lambda folder: calls.append(folder) or writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    trackers = Trackers(build_config({"log": {"trackers": ["tensorboard"]}}), RunFolder(tmp_path))
    trackers.log(RECORD)
    trackers.close()
    assert calls == [str(tmp_path / "tensorboard"), ("entropy", 0.5, 3), ("tokens", 7.0, 3), "closed"]


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
    trackers.close()

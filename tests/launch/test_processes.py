"""Started as several processes: each on a GPU of its own with TRL, refused by our own trainer."""

import sys
from types import ModuleType

import pytest

from holdfast.cli import dispatch
from holdfast.launch import trl
from holdfast.launch.runfile import RunFile
from holdfast.train.settings.configfile import build_config
from launch.conftest import EXAMPLES


class Reached(Exception):
    """The model would be built now."""


def test_a_rank_takes_its_gpu_before_any_model_is_built(fake_gpu, folder, monkeypatch):
    """Whatever is put on "cuda" before lies on the first card, of every rank."""
    chosen, module = fake_gpu(2), ModuleType("holdfast.integrations.trl")
    module.HoldfastGRPOTrainer = module.GuardCallback = None
    monkeypatch.setitem(sys.modules, "holdfast.integrations.trl", module)
    monkeypatch.setenv("LOCAL_RANK", "1")

    def build(*given):
        raise Reached

    monkeypatch.setattr(trl, "build_model", build)
    run = RunFile(build_config({"task": {"name": "ledger"}}), {})
    for start in (trl.run, trl.build_trainer):
        chosen.clear()
        with pytest.raises(Reached):
            start(run, folder)
        assert chosen and set(chosen) == {1}


@pytest.mark.parametrize(
    "command",
    [
        ["train", "EXAMPLE", "--run-dir", "out"],
        ["train", "--run-dir", "out", "--resume"],
        ["launch", "EXAMPLE", "--backend", "local", "--run-dir", "out"],
        ["compare", "EXAMPLE", "--out", "out"],
        ["demo", "--run-dir", "out"],
    ],
    ids=lambda words: words[0] + words[-1],
)
def test_our_trainer_refuses_several_processes_and_writes_nothing(command, folder, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    example, before = str(EXAMPLES / "shared.toml"), sorted(folder.rglob("*"))
    assert dispatch([example if word == "EXAMPLE" else word for word in command]) == 2
    said = capsys.readouterr().err
    named = example if "EXAMPLE" in command else "run.toml"
    assert "WORLD_SIZE = 8" in said and f"holdfast launch {named} --backend verl" in said
    assert f"--num_processes 8 -m holdfast launch {named} --backend trl" in said
    assert sorted(folder.rglob("*")) == before


def test_a_dry_run_may_be_one_of_several(folder, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert dispatch(["launch", str(EXAMPLES / "shared.toml"), "--backend", "local", "--dry-run"]) == 0

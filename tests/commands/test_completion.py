"""Completion knows every command, option and key of this version; the scripts themselves are shtab's."""

import subprocess

import pytest

from holdfast.cli import COMMANDS, available, dispatch
from holdfast.commands.completion.script import SHELLS, keys_of_runs, whole_parser
from holdfast.objectives.presets import list_presets
from holdfast.train.settings.reference import config_reference


def subcommands():
    (action,) = (a for a in whole_parser()._actions if a.dest == "command")
    return action.choices


def test_every_command_is_completed():
    found = subcommands()
    assert list(found) == available() and set(found) <= set(COMMANDS)
    for name, sub in found.items():
        assert any(a.option_strings or a.choices for a in sub._actions if a.dest != "help"), f"{name}: nothing to say"


def test_every_key_of_a_run_is_an_option_of_train():
    options = {option for action in subcommands()["train"]._actions for option in action.option_strings}
    assert {"--run-dir", "--resume", "--quiet", "--optimizer.learning_rate", "--async.staleness", "--steps"} <= options
    for key, _ in keys_of_runs():
        assert f"--{key}" in options
        assert f"| `{key.rpartition('.')[2]}` |" in config_reference()


def test_presets_are_choices():
    (name,) = (a for a in subcommands()["presets"]._actions if a.dest == "name")
    assert set(name.choices) == set(list_presets())


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_of_each_shell(shell, capsys):
    pytest.importorskip("shtab")
    assert dispatch(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert "optimizer.learning_rate" in text and "trm_max" in text
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    assert dispatch(["completion", "bash"]) == 2
    assert "pip install 'shtab>=1.13'" in capsys.readouterr().err

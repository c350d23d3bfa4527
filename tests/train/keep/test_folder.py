"""The run folder is never overwritten silently, and what a kill leaves behind can be read."""

import os
from pathlib import Path

import pytest

from holdfast.errors import ConfigError
from holdfast.train.keep.folder import RunFolder, free_folder, write_text
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.configfile import build_config, read_toml


def test_refuses_an_existing_folder_and_names_a_free_one(tmp_path: Path):
    run = tmp_path / "run"
    RunFolder.create(run, RunConfig())
    (tmp_path / "run-2").mkdir()
    with pytest.raises(ConfigError) as caught:
        RunFolder.create(run, RunConfig())
    for words in ("exists already", "--resume", str(tmp_path / "run-3")):
        assert words in str(caught.value)


def test_refuses_a_file_and_takes_an_empty_folder(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="exists already"):
        RunFolder.create(tmp_path / "file", RunConfig())
    (tmp_path / "empty").mkdir()
    assert RunFolder.create(tmp_path / "empty", RunConfig()).config.is_file()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_unwritable_folder(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match=r"cannot be written.*--run-dir"):
        RunFolder.create(tmp_path / "run", RunConfig())


def test_parent_that_is_a_file_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"cannot be written.*--run-dir"):
        RunFolder.create(tmp_path / "file" / "run", RunConfig())


def test_resuming_nothing(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nothing to resume.*no config.toml"):
        RunFolder.open(tmp_path)


def test_only_steps_may_change_when_resuming(tmp_path: Path):
    RunFolder.create(tmp_path / "run", RunConfig(steps=3))
    folder, config = RunFolder.open(tmp_path / "run", RunConfig(steps=5))
    assert config.steps == 5 and read_toml(folder.config)["steps"] == 5
    with pytest.raises(ConfigError, match=r"engine\.lag, seed differ"):
        RunFolder.open(tmp_path / "run", build_config({"seed": 3, "engine": {"lag": 9}}))


def test_resolved_configuration_is_what_was_run(tmp_path: Path):
    config = build_config({"task": {"name": "ledger", "entries": 5}})
    folder = RunFolder.create(tmp_path / "run", config)
    assert RunFolder.open(folder.path)[1] == config
    assert read_toml(folder.config)["batch"]["group_size"] == 8


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path):
    folder = RunFolder(tmp_path)
    assert folder.read_metrics() == []
    folder.append_metrics({"step": 1, "entropy": 0.1})
    with folder.metrics.open("a") as file:
        file.write('{"step": 2, "entr')
    assert folder.read_metrics() == [{"step": 1, "entropy": 0.1}]


def test_what_came_after_the_checkpoint_is_dropped(tmp_path: Path):
    folder = RunFolder(tmp_path)
    for step in range(4):
        folder.append_metrics({"step": step, "entropy": 0.1 * step})
    (tmp_path / "rollouts").mkdir()
    for step in (1, 2, 3):
        (tmp_path / "rollouts" / f"step_{step:04d}.parquet").touch()
    before = folder.metrics.read_text().splitlines()
    folder.truncate_metrics(2)
    assert folder.metrics.read_text().splitlines() == before[:3]
    assert [file.name for file in sorted((tmp_path / "rollouts").iterdir())] == [
        "step_0001.parquet",
        "step_0002.parquet",
    ]


def test_metrics_refuse_what_json_cannot_say(tmp_path: Path):
    with pytest.raises(ValueError, match="Out of range float"):
        RunFolder(tmp_path).append_metrics({"step": 1, "entropy": float("nan")})


def test_files_are_replaced_whole(tmp_path: Path):
    write_text(tmp_path / "file", "a")
    write_text(tmp_path / "file", "b")
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("file", "b")]


def test_free_folder(tmp_path: Path):
    assert free_folder(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run").mkdir()
    assert free_folder(tmp_path / "run") == tmp_path / "run-2"

"""The run folder is never overwritten silently, and what a kill leaves behind can be read."""

import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from holdfast.errors import ConfigError
from holdfast.train.keep.files import write_text
from holdfast.train.keep.folder import RunFolder, free_folder
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


@pytest.mark.parametrize("damage", [b"\0" * 20, b"\xff\xfe{", b'"text"', b'{"step": "1"}', b"[" * 100_000, b'{"st'])
def test_a_damaged_line_is_cut_with_a_word(tmp_path: Path, damage: bytes):
    folder = RunFolder(tmp_path)
    for step in range(3):
        folder.append_metrics({"step": step})
    lines = folder.metrics.read_bytes().splitlines()
    folder.metrics.write_bytes(b"\n".join([lines[0], damage, lines[2], b""]))
    assert folder.read_metrics() == [{"step": 0}, {"step": 2}]
    (said,) = folder.truncate_metrics(2)
    assert "damaged lines were cut (2)" in said and said.endswith("lost: 1")
    assert folder.metrics.read_text() == '{"step": 0}\n{"step": 2}\n'
    with folder.metrics.open("ab") as file:
        file.write(damage)
    assert folder.truncate_metrics(0) == [], "what a kill cuts off is run again"


def test_files_of_others_are_not_dropped(tmp_path: Path):
    names = ["step_0001.parquet", "step_0001_kept.parquet", "step_one.parquet", "step_0009.parquet.txt"]
    (tmp_path / "rollouts").mkdir()
    for name in names:
        (tmp_path / "rollouts" / name).touch()
    RunFolder(tmp_path).truncate_metrics(0)
    assert sorted(file.name for file in (tmp_path / "rollouts").iterdir()) == sorted(names[1:])


def test_one_process_trains_in_a_folder(tmp_path: Path):
    folder = RunFolder.create(tmp_path / "run", RunConfig())
    with folder.lock():
        for other in (folder.lock, lambda: nullcontext(RunFolder.open(folder.path, RunConfig(steps=1)))):
            with pytest.raises(ConfigError, match=r"another process is training in"), other():
                pass
    assert read_toml(folder.config)["steps"] == RunConfig().steps
    with folder.lock():
        pass
    assert [file.name for file in folder.path.iterdir()] == ["config.toml"], "the lock leaves nothing"


def test_a_kill_before_the_configuration_leaves_a_folder_that_can_be_used(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml.tmp").write_text("ste")
    assert RunFolder.create(tmp_path / "run", RunConfig()).config.is_file()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.tmp").touch()
    with pytest.raises(ConfigError, match="exists already"):
        RunFolder.create(tmp_path / "mine", RunConfig())


def test_what_a_kill_left_of_files_being_written_is_removed_and_nothing_else(tmp_path: Path):
    folder = RunFolder.create(tmp_path / "run", RunConfig())
    for name in ("config.toml", "metrics.jsonl", "summary.json", "ledger.jsonl", "notes"):
        (folder.path / f"{name}.tmp").write_text("{")
    folder.tidy()
    assert sorted(file.name for file in folder.path.iterdir()) == ["config.toml", "notes.tmp"]


def test_a_refused_run_takes_its_folder_with_it_and_nothing_else(tmp_path: Path):
    folder = RunFolder.create(tmp_path / "run", RunConfig())
    folder.engine.mkdir()
    folder.discard()
    assert not folder.path.exists()
    for other in ("notes.txt", "metrics.jsonl", "summary.json", "ledger.jsonl", "checkpoints", "warm_start"):
        folder = RunFolder.create(tmp_path / other / "run", RunConfig())
        (folder.path / other).mkdir()
        folder.discard()
        assert (folder.path / other).is_dir() and folder.config.exists() == (other != "notes.txt")


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

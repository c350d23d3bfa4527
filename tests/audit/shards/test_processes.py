"""Shards in processes: the audit of one process, a lost worker's shard done once more, errors of workers by name."""

import os
import signal

import pytest

from audit.shards.conftest import differences, report_of
from holdfast.audit.judge.auditor import Auditor
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.source import find_files, read_files
from holdfast.audit.shards import processes
from holdfast.audit.shards.shard import audit_shard, cut
from holdfast.audit.simulate import clean_run
from holdfast.errors import DataError
from holdfast.rollout.store import write_rollouts


@pytest.fixture
def folder(tmp_path):
    """Three files of one run."""
    for step in range(3):
        write_rollouts(
            tmp_path / f"step_{step}.parquet", clean_run(step, steps=2, prompts=4, group_size=4, mean_length=30)
        )
    return tmp_path


def whole(folder):
    made = Auditor(Reading())
    files = find_files(folder)
    for file, chunk in read_files(files, made.reading):
        made.feed(chunk, str(file.path), files.index(file))
    return made


def in_shards(folder, count, progress=lambda done, tokens: None):
    made = Auditor(Reading())
    shards = cut(str(folder), find_files(folder), count, made.reading)
    made.log = shards[0].log
    processes.audit_in_processes(shards, made, progress)
    return made


def test_files_are_dealt_evenly_and_each_once(folder):
    files = find_files(folder)
    shards = cut("a log", files, 2, Reading())
    assert sorted(place for shard in shards for place, _, _ in shard.files) == [0, 1, 2]
    assert max(shard.size for shard in shards) <= sum(file.size for file in files) * 0.7
    assert {shard.log for shard in shards} == {shards[0].log}
    assert "a log (3 files, " in shards[0].log
    assert len(cut("a log", files, 64, Reading())) == 3  # a shard has a file at least


def test_another_list_of_files_is_another_log(folder):
    files = find_files(folder)
    assert cut("a log", files, 2, Reading())[0].log != cut("a log", files[:2], 2, Reading())[0].log


@pytest.mark.slow
def test_two_processes_say_what_one_says(folder):
    told = []
    both = in_shards(folder, 2, lambda done, tokens: told.append((done, tokens)))
    assert differences(report_of(both), report_of(whole(folder))) == []
    assert told[-1] == (both.reading.bytes_read, both.facts.tokens)


@pytest.mark.slow
def test_a_worker_killed_once_is_replaced(folder, monkeypatch):
    mark = folder.parent / f"{folder.name}-killed"

    def fragile(shard, tell):
        if shard.number == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return audit_shard(shard, tell)

    monkeypatch.setattr(processes, "audit_shard", fragile)
    monkeypatch.setattr(processes, "_context", lambda: processes.multiprocessing.get_context("fork"))
    assert differences(report_of(in_shards(folder, 2)), report_of(whole(folder))) == []
    assert mark.exists()


def test_a_worker_killed_twice_is_named(folder, monkeypatch):
    def fragile(shard, tell):
        if shard.number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return audit_shard(shard, tell)

    monkeypatch.setattr(processes, "audit_shard", fragile)
    monkeypatch.setattr(processes, "_context", lambda: processes.multiprocessing.get_context("fork"))
    with pytest.raises(DataError, match=r"shard 2 of 2 \(step_.*parquet.*killed by SIGKILL.*fewer\s+workers"):
        in_shards(folder, 2)


@pytest.mark.slow
def test_a_file_that_vanished_is_named(folder):
    made = Auditor(Reading())
    shards = cut(str(folder), find_files(folder), 2, made.reading)
    (folder / "step_1.parquet").unlink()
    made.log = shards[0].log
    with pytest.raises(DataError, match=r"step_1\.parquet is not there for this worker"):
        processes.audit_in_processes(shards, made)


@pytest.mark.slow
def test_damaged_files_are_left_out_and_named_as_in_one_process(folder):
    whole_file = folder / "step_1.parquet"
    whole_file.write_bytes(whole_file.read_bytes()[:-200] + b"0" * 196 + b"PAR1")
    both, one = in_shards(folder, 3), whole(folder)
    assert both.reading.rejected == one.reading.rejected != {}
    assert both.reading.examples == one.reading.examples

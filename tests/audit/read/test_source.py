"""Finding the files of a run, and what is said when there are none."""

import pytest

from holdfast.audit.read.reading import Reading
from holdfast.audit.read.source import find_files, read_files
from holdfast.errors import DataError
from holdfast.rollout.store import write_rollouts
from holdfast.types import Rollout


def test_steps_in_natural_order_and_hidden_files_left_alone(tmp_path):
    for step in (10, 2, 1):
        write_rollouts(tmp_path / f"step_{step}.parquet", [Rollout((1,), (2,), step=step)])
    (tmp_path / ".step_3.parquet.tmp").write_bytes(b"PAR1")
    (tmp_path / "metrics.txt").write_text("other things lie in a run folder too")
    files = find_files(tmp_path)
    assert [f.path.name for f in files] == ["step_1.parquet", "step_2.parquet", "step_10.parquet"]
    assert [int(c.numbers["step"][0]) for _, c in read_files(files, Reading())] == [1, 2, 10]


def test_a_missing_path_an_empty_folder_and_unknown_files_say_so(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        find_files(tmp_path / "nowhere")
    with pytest.raises(DataError, match="empty folder"):
        find_files(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"none of 1 files is of a known format. Looked for .*Holdfast: \*\.parquet"):
        find_files(tmp_path)


def test_a_broken_file_is_named_and_the_others_are_read(tmp_path):
    write_rollouts(tmp_path / "a.parquet", [Rollout((1,), (2,), step=1)])
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    (tmp_path / "c.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    reading = Reading()
    chunks = list(read_files(find_files(tmp_path), reading))
    assert len(chunks) == 2
    assert reading.rejected == {"unreadable file": 1}
    assert reading.examples[0].path.endswith("b.parquet")

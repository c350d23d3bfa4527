"""Finding the files of a run, and what is said when there are none."""

import dataclasses
import re
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from holdfast.audit.read.reading import Reading
from holdfast.audit.read.source import find_files, read_files
from holdfast.errors import DataError
from holdfast.rollout import store
from holdfast.rollout.store import VERSION_KEY, write_rollouts
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


def damaged(folder, column, values):
    """Our own parquet with one column replaced: what a stranger's program may write."""
    write_rollouts(folder / "a.parquet", [Rollout((1,), (2, 3), step=n, reward=0.5, environment="e") for n in range(3)])
    table = pq.read_table(folder / "a.parquet")
    place = table.schema.get_field_index(column)
    metadata = table.schema.metadata
    table = table.set_column(place, column, values) if values is not None else table.remove_column(place)
    pq.write_table(table.replace_schema_metadata(metadata), folder / "b.parquet")


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("reward", pa.array([[1.0], [2.0], []]), r"reward is list<.*>, and rollouts have float"),
        ("environment", pa.array([1, 2, 3]), "environment is int64"),
        ("response_ids", pa.array(["a", "b", "c"]), "response_ids is string"),
        ("response_ids", pa.array([[1.5], [2.0], [0.0]]), r"response_ids is list<.*double>"),
        ("response_ids", pa.array([[2**40], [1], [1]]), "not a complete parquet file"),
        ("response_mask", pa.array([{"x": True}] * 3), "response_mask is struct"),
        ("prompt_ids", None, "has no prompt_ids"),
    ],
)
def test_an_ill_typed_file_is_named_and_the_others_are_read(tmp_path, column, values, said):
    damaged(tmp_path, column, values)
    reading = Reading()
    assert sum(len(chunk) for _, chunk in read_files(find_files(tmp_path), reading)) == 3
    assert reading.rejected == {"unreadable file": 1}
    assert "b.parquet" in reading.examples[0].reason and re.search(said, reading.examples[0].reason)


@pytest.mark.parametrize("ids", [[[1], [2, 3], None], [[1], [2, None], [2, 3]]])
def test_a_row_without_all_its_ids_is_left_out(tmp_path, ids):
    damaged(tmp_path, "response_ids", pa.array(ids, pa.list_(pa.int32())))
    reading = Reading()
    chunks = [chunk for _, chunk in read_files(find_files(tmp_path / "b.parquet"), reading)]
    assert sum(map(len, chunks)) == 2 and reading.rejected == {"missing field": 1}


def test_other_widths_are_read_as_ours(tmp_path):
    damaged(tmp_path, "response_ids", pa.array([[1, 2], [2, 3], [3, 4]], pa.large_list(pa.int64())))
    chunks = [chunk for _, chunk in read_files(find_files(tmp_path / "b.parquet"), Reading())]
    assert chunks[0].tokens["response_ids"].tolist() == [1, 2, 2, 3, 3, 4]


def test_whatever_a_reader_raises_ends_its_own_file_only(tmp_path):
    def fails(path, reading):
        yield from ()
        raise RecursionError("too deep")

    write_rollouts(tmp_path / "a.parquet", [Rollout((1,), (2,))])
    (good,) = find_files(tmp_path)
    bad = dataclasses.replace(good, loader=dataclasses.replace(good.loader, read=fails))
    reading = Reading()
    assert len(list(read_files([bad, good, bad], reading))) == 1
    assert reading.rejected == {"unreadable file": 2} and "RecursionError: too deep" in reading.examples[0].reason


def test_files_that_cannot_be_opened_and_odd_names_are_no_obstacle(tmp_path):
    write_rollouts(tmp_path / "1²3.parquet", [Rollout((1,), (2,))])
    (tmp_path / "unreadable.parquet").symlink_to("/proc/self/mem")
    notes = []
    assert [file.path.name for file in find_files(tmp_path, note=notes.append)] == ["1²3.parquet"]
    if sys.platform == "linux":
        assert [note for note in notes if "unreadable.parquet could not be read and was left out: Input" in note]


@pytest.mark.parametrize("others", [0, 3000])
@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.slow
def test_a_row_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch, ours, others):
    monkeypatch.setattr(store, "LONGEST_ROW", 10_000)
    table = pa.table({name: pa.array([[1]] * others + [[0] * 10_001]) for name in ("prompt_ids", "response_ids")})
    pq.write_table(table.replace_schema_metadata({VERSION_KEY: b"1"} if ours else None), tmp_path / "a.parquet")
    reading = Reading()
    assert list(read_files(find_files(tmp_path), reading)) == []
    assert "a row with more than 10,000 entries in prompt_ids" in reading.examples[0].reason
    table = pa.table({name: pa.array([[1]] * others + [[0] * 10_000]) for name in ("prompt_ids", "response_ids")})
    pq.write_table(table.replace_schema_metadata({VERSION_KEY: b"1"} if ours else None), tmp_path / "a.parquet")
    assert sum(len(chunk) for _, chunk in read_files(find_files(tmp_path), Reading())) == others + 1

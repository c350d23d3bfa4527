"""Bounds of divergences in Holdfast's own parquet: read bit for bit, and left out by name where they cannot be."""

import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dumps import load, sample_rollouts
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.source import find_files, read_files
from holdfast.rollout.store import SCHEMA, write_rollouts
from holdfast.types import Rollout

NAMES = ("kl_lower", "tv_lower", "tv_upper")


def bounded(number, **changes):
    """Two tokens, the second a tool's."""
    given = {"response_mask": (True, False), "kl_lower": (0.5, 0.0), "tv_lower": (0.25, 0.0), "tv_upper": (0.75, 1.0)}
    return plain(number) | {"response_ids": [1, 2]} | given | changes


def written(path, rows):
    """A file that `Rollout` would not let us write."""
    table = pa.table({name: [row.get(name) for row in rows] for name in SCHEMA.names}, schema=SCHEMA)
    pq.write_table(table, path / "run.parquet")
    return load(path / "run.parquet")


@pytest.mark.parametrize(
    ("changes", "kind", "detail"),
    [
        ({"kl_lower": (-0.5, 0.0)}, "number out of range", "kl_lower is -0.5 at token 0, allowed are finite numbers"),
        ({"kl_lower": (math.inf, 0.0)}, "number out of range", "kl_lower is inf at token 0"),
        ({"tv_lower": (None, 0.0)}, "number out of range", "tv_lower is nan at token 0, allowed are numbers from 0 to"),
        ({"tv_upper": (0.125, 0.0)}, "number out of range", "tv_upper is 0.125 at token 0, allowed are numbers from t"),
        ({"tv_upper": (1.5, 0.0)}, "number out of range", "tv_upper is 1.5 at token 0"),
        ({"kl_lower": (0, 9, 9), "tv_upper": (7, 7)}, "lengths differ", "kl_lower has 3 entries, response_ids 2"),
        ({"tv_lower": None}, "missing field", "kl_lower, tv_lower, tv_upper come together"),
        ({"response_mask": None, "kl_lower": (0.5, -1.0)}, "number out of range", "kl_lower is -1 at token 1"),
        ({"response_ids": (), "response_mask": (), "kl_lower": (), "tv_lower": (), "tv_upper": None},
         "missing field", "come together"),
    ],
)  # fmt: skip
def test_a_row_with_impossible_bounds_is_left_out_and_named(tmp_path, changes, kind, detail):
    got, reading = written(tmp_path, [bounded(0), bounded(1, **changes), bounded(2), dict.fromkeys(NAMES) | plain(3)])
    assert reading.rejected == {kind: 1}
    (example,) = reading.examples
    assert example.record == 1 and detail in example.reason
    assert [r.sequence_id for r in got] == [0, 2, 3]
    assert got[0].tv_upper == (0.75, 1.0) and got[2].tv_upper is None


def plain(number):
    text = f"text {number}"
    return {"prompt_ids": [number], "response_ids": [1, 2, 3], "sequence_id": number, "response_text": text}


def test_faults_of_several_kinds_are_each_counted_once(tmp_path):
    rows = [bounded(0), bounded(1, kl_lower=(1.0,)), plain(2), bounded(3, tv_lower=(2, 0)), bounded(4, tv_upper=None)]
    got, reading = written(tmp_path, [*rows, bounded(5, kl_lower=(-1, 0), tv_lower=(9, 9)), bounded(6)])
    assert reading.rejected == {"lengths differ": 1, "number out of range": 2, "missing field": 1}
    assert {example.record for example in reading.examples} == {1, 3, 4, 5}
    assert [r.sequence_id for r in got] == [0, 2, 6]
    path = tmp_path / "run.parquet"
    ((_, chunk),) = read_files(find_files(path), Reading())
    assert [chunk.keep(place).whole().response_text for place in range(3)] == ["text 0", "text 2", "text 6"]


def test_what_a_tool_said_is_not_judged(tmp_path):
    got, reading = written(tmp_path, [bounded(0, kl_lower=(0.5, -1.0), tv_upper=(0.75, 7.0))])
    assert reading.rejected == {} and got[0].kl_lower == (0.5, -1.0)


def test_a_file_with_only_some_of_the_columns_names_all_three(tmp_path):
    table = pa.table({"prompt_ids": [[1]], "response_ids": [[2]], "kl_lower": [[0.5]]})
    pq.write_table(table.replace_schema_metadata(SCHEMA.metadata), tmp_path / "run.parquet")
    got, reading = load(tmp_path / "run.parquet")
    assert got == [] and reading.rejected == {"missing field": 1}


def test_bounds_come_back_bit_for_bit_beside_sequences_without(tmp_path):
    rollouts = sample_rollouts(count=4)
    values = {"kl_lower": 0.1, "tv_lower": 0.2, "tv_upper": 0.3}
    for place in (0, 3):
        fields = {name: (1 / 8,) * len(rollouts[place].response_ids) for name in values}
        rollouts[place] = Rollout(**(vars(rollouts[place]) | fields))
    write_rollouts(tmp_path / "run.parquet", rollouts)
    got, reading = load(tmp_path / "run.parquet")
    assert got == rollouts and reading.rejected == {}

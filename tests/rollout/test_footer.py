"""The footer of a parquet file, held against Arrow's own reading of it, and damaged in any place."""

import io
import os
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dumps
from holdfast.errors import DataError
from holdfast.rollout.footer import row_groups
from holdfast.rollout.store import open_parquet, schema_of, write_rollouts


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rollouts.parquet"
    write_rollouts(path, dumps.sample_rollouts(0, count=6, largest=30), rows_per_group=3)
    return path


def arrow(path):
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    columns = [[group.column(i) for i in range(group.num_columns)] for group in groups]
    return [(g.num_rows, [(c.path_in_schema, c.num_values) for c in cs]) for g, cs in zip(groups, columns, strict=True)]


def ours(path):
    return [(group.rows, list(group.values)) for group in row_groups(path)]


def test_rows_and_values_are_those_that_arrow_reads(file, tmp_path):
    assert ours(file) == arrow(file) and len(ours(file)) == 2
    assert ours(io.BytesIO(file.read_bytes())) == arrow(file)
    nested = pa.table(
        {
            "é": [{"a": [[1, 2], []], "b": None}] * 40,
            "m": pa.array([[("k", 1.5)], []] * 20, pa.map_(pa.string(), pa.float64())),
        }
    )
    nested = nested.replace_schema_metadata({b"key": b"\xff" * 300})
    for options in ({}, {"compression": "none", "version": "1.0"}, {"write_page_index": True}):
        pq.write_table(nested, tmp_path / "nested.parquet", row_group_size=7, **options)
        assert ours(tmp_path / "nested.parquet") == arrow(tmp_path / "nested.parquet")
    pq.write_table(pa.table({"a": pa.array([], pa.int32())}), tmp_path / "empty.parquet")
    assert ours(tmp_path / "empty.parquet") == arrow(tmp_path / "empty.parquet")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + b"\xff" * 20, b"PAR1\x00\x04\x00\x00\x00PAR1", b"x" * 100])
def test_what_has_no_footer_is_damaged(data):
    with pytest.raises(DataError, match="not a complete parquet file"):
        row_groups(io.BytesIO(data))


@pytest.mark.slow
def test_a_damaged_footer_is_an_error_and_never_the_end_of_the_process(file):
    """Arrow ends the process where the statistics of a column do not fit, so this is tried in one of its own."""
    raw, rng = file.read_bytes(), random.Random(0)
    start = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    child = os.fork()
    if child == 0:
        for _ in range(150):
            data = bytearray(raw)
            data[rng.randrange(start, len(raw))] ^= 1 << rng.randrange(8)
            try:
                schema_of(io.BytesIO(bytes(data)))
                with open_parquet(io.BytesIO(bytes(data))) as opened:
                    for _batch in opened.iter_batches(columns=["response_ids"]):
                        pass
            except DataError:
                continue
            except BaseException:
                os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

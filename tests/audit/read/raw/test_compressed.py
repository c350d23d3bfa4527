"""Packed files read as plain ones, and what is left of a damaged one."""

import gzip
import json

import pyarrow as pa
import pytest

import dumps
from dumps import load
from holdfast.audit.read.raw import compressed
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.source import find_files, read_files
from holdfast.errors import DataError


def zstd(data):
    """Two frames and a skippable one, as the seekable writers leave them."""
    codec, half = pa.Codec("zstd"), len(data) // 2
    frames = [codec.compress(part, asbytes=True) for part in (data[:half], data[half:])]
    return b"".join(frames) + b"\x5e\x2a\x4d\x18" + (8).to_bytes(4, "little") + b"12345678"


PACKERS = {".gz": gzip.compress, ".zst": zstd}


@pytest.mark.parametrize("write", dumps.WRITERS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("suffix", PACKERS)
def test_every_format_packed(tmp_path, write, suffix):
    written = dumps.sample_rollouts(count=4)
    (tmp_path / "a").mkdir()
    write(tmp_path / "a", written)
    expected, _ = load(tmp_path / "a")
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    for path in files:
        path.with_name(path.name + suffix).write_bytes(PACKERS[suffix](path.read_bytes()))
        path.unlink()
    got, reading = load(tmp_path / "a")
    assert [(r.response_ids, r.reward, r.step) for r in got] == [(r.response_ids, r.reward, r.step) for r in expected]
    assert not reading.rejected


@pytest.mark.parametrize("suffix", PACKERS)
def test_own_parquet_packed(tmp_path, suffix):
    from holdfast.rollout.store import write_rollouts

    write_rollouts(tmp_path / "a.parquet", dumps.sample_rollouts(count=4))
    (tmp_path / f"b.parquet{suffix}").write_bytes(PACKERS[suffix]((tmp_path / "a.parquet").read_bytes()))
    assert load(tmp_path / f"b.parquet{suffix}")[0] == load(tmp_path / "a.parquet")[0]


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_file_cut_off_gives_its_whole_lines(tmp_path, suffix):
    line = json.dumps({"choices": [{"token_ids": [1], "logprobs": {"tokens": ["a"], "token_logprobs": [-1.0]}}]})
    noise = "".join(chr(33 + (i * i * 7919 + i // 3) % 90) for i in range(400_000)).replace('"', "_").replace("\\", "_")
    lines = [json.dumps({**json.loads(line), "id": noise[i : i + 400]}) for i in range(0, 400_000, 400)]
    packed = PACKERS[suffix]("\n".join(lines).encode())
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed[: len(packed) * 3 // 4])
    rollouts, reading = load(path)
    assert 0 < len(rollouts) < len(lines)
    assert reading.rejected["packed file cut off or damaged"] == 1
    assert reading.bytes_read == path.stat().st_size


def test_a_packed_copy_beside_the_plain_file_is_left_out(tmp_path):
    path = dumps.open_instruct(tmp_path, dumps.sample_rollouts(count=4))
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    notes = []
    assert [f.path for f in find_files(tmp_path, note=notes.append)] == [path]
    assert notes == ["1 files left out: they lie unpacked beside them"]


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_damaged_packed_file_is_named(tmp_path, suffix):
    path = tmp_path / f"12.pt{suffix}"
    (tmp_path / "train_data").mkdir()
    raw = dumps.slime_train(tmp_path, dumps.sample_rollouts(count=200)).read_bytes()
    path.write_bytes(PACKERS[suffix](raw)[:-40])
    reading = Reading()
    assert list(read_files(find_files(path), reading)) == []
    assert reading.rejected == {"unreadable file": 1}


def test_a_packed_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(compressed, "LARGEST_UNPACKED", 1000)
    for size in (1000, 1001):
        (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(size)))
        if size == 1000:
            assert compressed.unpacked(tmp_path / "a.gz").getvalue() == bytes(size)
            continue
        with pytest.raises(DataError, match=r"a.gz unpacks to more than .* GB in memory: unpack it on disk"):
            compressed.unpacked(tmp_path / "a.gz")

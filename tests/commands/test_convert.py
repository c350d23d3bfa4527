"""`holdfast convert`: what comes out is what the loaders read; bad input is counted, nothing half-written stays."""

import pytest

import dumps
from holdfast.cli import dispatch
from holdfast.rollout.store import read_rollouts, write_rollouts


@pytest.mark.parametrize("write", dumps.WRITERS, ids=lambda write: write.__name__)
def test_converted_rollouts_are_those_of_the_log(tmp_path, write, capsys):
    written = dumps.sample_rollouts()
    (tmp_path / "log").mkdir()
    write(tmp_path / "log", written)
    target = tmp_path / "run.parquet"
    assert dispatch(["convert", str(tmp_path / "log"), str(target)]) == 0
    got = list(read_rollouts(target))
    assert [r.response_ids for r in got] == [r.response_ids for r in written]
    if write is not dumps.responses_api:  # whose answers do not repeat what was asked
        assert [r.prompt_ids for r in got] == [r.prompt_ids for r in written]
    for mine, theirs in zip(got, written, strict=True):
        own = theirs.response_mask
        pairs = zip(mine.rollout_logprobs, theirs.rollout_logprobs, own, strict=True)
        assert all(a == b for a, b, counted in pairs if counted)
    tokens = sum(len(r.response_ids) for r in written)
    assert f"6 rollouts, {tokens} response tokens" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "run.parquet"]


def test_bad_records_are_counted_and_named(tmp_path, capsys):
    path = dumps.open_instruct(tmp_path, dumps.sample_rollouts(count=3))
    path.write_bytes(path.read_bytes() + b'{"step": 1, "prompt_tok')
    assert dispatch(["convert", str(path), str(tmp_path / "run.parquet")]) == 0
    said = capsys.readouterr().err
    assert "left out 1 records: 1 × cut off in mid-record" in said
    assert "line 4: 23 bytes without an end" in said
    assert "drift cannot be measured" in said


def test_nothing_usable_is_exit_2_and_leaves_nothing(tmp_path, capsys):
    (tmp_path / "x_rollouts_0.jsonl").write_text('{"prompt_idx": 1, "prompt_tokens": 7}\n')
    assert dispatch(["convert", str(tmp_path), str(tmp_path / "run.parquet")]) == 2
    assert "no usable rollout (1 × missing field)" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["x_rollouts_0.jsonl"]


def test_a_target_is_not_overwritten_by_accident(tmp_path, capsys):
    source, target = tmp_path / "a.parquet", tmp_path / "b.parquet"
    write_rollouts(source, dumps.sample_rollouts())
    target.write_text("precious")
    assert dispatch(["convert", str(source), str(target)]) == 2
    assert "--force" in capsys.readouterr().err
    assert target.read_text() == "precious"
    assert dispatch(["convert", str(source), str(target), "--force"]) == 0
    assert len(list(read_rollouts(target))) == 6


def test_own_parquet_survives_conversion_unchanged(tmp_path):
    source, target = tmp_path / "a.parquet", tmp_path / "b.parquet"
    write_rollouts(source, dumps.sample_rollouts())
    assert dispatch(["convert", str(source), str(target)]) == 0
    assert list(read_rollouts(target)) == list(read_rollouts(source))


@pytest.mark.parametrize(
    ("name", "says"), [("run.json", "call it run.parquet"), ("nowhere/run.parquet", "is no folder")]
)
def test_an_impossible_target_says_so(tmp_path, capsys, name, says):
    dumps.open_instruct(tmp_path, dumps.sample_rollouts())
    assert dispatch(["convert", str(tmp_path), str(tmp_path / name)]) == 2
    assert says in capsys.readouterr().err

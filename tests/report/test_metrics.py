import json

from holdfast.report.metrics import read_metrics


def written(tmp_path, *lines):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return read_metrics(path)


def test_numbers_come_with_their_steps(tmp_path):
    metrics = written(tmp_path, {"step": 1, "a": 2.0}, {"step": 2}, {"step": 3, "a": 5, "b": True})
    assert metrics.series("a") == ([1, 3], [2.0, 5.0])
    assert (metrics.first("a"), metrics.last("a"), metrics.mean("a")) == (2.0, 5.0, 3.5)
    assert metrics.highest("a") == (3, 5.0)
    assert not metrics.has("b")
    assert metrics.mean("b") is None
    assert metrics.highest("b") is None


def test_torn_and_foreign_lines_are_counted_not_raised(tmp_path):
    metrics = written(tmp_path, {"step": 1, "a": 1}, "[1, 2]", "", '{"step": 2, "a": 3', "\ufffd")
    assert len(metrics.rows) == 1
    assert metrics.unreadable == 3


def test_what_is_no_finite_number_was_not_measured(tmp_path):
    metrics = written(tmp_path, '{"step": 1, "a": NaN, "b": Infinity, "c": "x", "d": null, "l": [1, null, NaN]}')
    assert not metrics.has("a", "b", "c", "d")
    assert metrics.lists("l") == [(1, [1.0, None, None])]


def test_a_step_written_again_after_a_resume_counts_once(tmp_path):
    metrics = written(tmp_path, {"step": 1, "a": 1}, {"step": 2, "a": 2}, {"step": 2, "a": 7}, {"step": 3, "a": 3})
    assert metrics.series("a") == ([1, 2, 3], [1.0, 7.0, 3.0])


def test_warnings_are_gathered(tmp_path):
    metrics = written(
        tmp_path, {"step": 1, "warnings": ["x"]}, {"step": 4, "warnings": ["y", "x"]}, {"step": 5, "warnings": 3}
    )
    assert metrics.warnings() == [("x", [1, 4]), ("y", [4])]


def test_no_file_is_no_steps(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl").rows == ()

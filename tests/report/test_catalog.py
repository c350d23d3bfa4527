"""Every number has a place: in the catalogue, in docs/metrics.md, in trackers."""

from pathlib import Path

import pytest

from holdfast.report.catalog import GROUPS, METRICS, metric_of, reference, scalars, tracker_name

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_docs_are_of_this_catalogue():
    assert DOCUMENT.read_text(encoding="utf-8") == reference(), "python -m holdfast.report.catalog docs/metrics.md"


def test_every_metric_has_one_place_and_a_meaning():
    keys = [metric.key for metric in METRICS]
    assert len(set(keys)) == len(keys)
    for metric in METRICS:
        assert metric.group in GROUPS and metric.unit and metric.meaning
        assert metric_of(metric.key) is metric, "a pattern further up hides it"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("loss", "train/loss"),
        ("eval_pass_at_8", "eval/pass_at_8"),
        ("kl_exact_max", "drift/kl_exact_max"),
        ("masked_tokens", "trust/masked_tokens"),
        ("bounds.unified", "bounds/unified"),
        ("time_split.generate", "time/generate"),
        ("guard/entropy_collapse", "guard/entropy_collapse"),
        ("seen_nowhere", "other/seen_nowhere"),
    ],
)
def test_names_in_trackers(key, name):
    assert tracker_name(key) == name


def test_no_two_numbers_share_a_name_in_trackers():
    names = [tracker_name(metric.key) for metric in METRICS]
    assert len(set(names)) == len(names)


def test_what_is_no_finite_number_is_no_scalar():
    record = {"step": 3, "a": True, "b": float("nan"), "c": [1.0], "d": "x", "e": None, "f": 2, "extra": {"g": 1.0}}
    assert dict(scalars(record)) == {"f": 2.0}


def test_what_the_loop_records_is_in_the_catalogue(run_folder):
    """Of the made-up run, which has the keys of a real one; tests/train/test_loop.py looks at a real one's."""
    from holdfast.report.metrics import read_metrics

    folder, _ = run_folder(steps=2)
    for row in read_metrics(folder / "metrics.jsonl").rows:
        assert not [key for key, _ in scalars(row) if metric_of(key).group == "other"]

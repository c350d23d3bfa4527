"""Numbers of a step that the objective does not make itself."""

import torch

from holdfast.train.show.metrics import length_metrics, measured, recordable


def lengths(*counts):
    return torch.arange(max(counts))[None, :] < torch.tensor(counts)[:, None]


def test_the_masked_share_of_each_quarter_of_length():
    mask = lengths(1, 2, 3, 4, 5, 6, 7, 8)
    kept = mask.clone()
    kept[[1, 6, 7]] = False
    kept[4, 1:] = False  # a sequence that keeps a token is not masked
    assert length_metrics(mask, kept) == {
        "masked_by_length": [0.5, 0.0, 0.0, 1.0],
        "length_counts": [2, 2, 2, 2],
        "length_quartiles": [2.0, 4.0, 6.0],
    }


def test_a_quarter_without_a_response_has_no_share():
    """Five of six responses have the same length: every edge is 3, and the second and third quarter are empty."""
    mask = lengths(3, 3, 3, 3, 3, 9)
    assert length_metrics(mask, mask)["masked_by_length"] == [0.0, None, None, 0.0]
    assert length_metrics(mask, mask)["length_counts"] == [5, 0, 0, 1]
    same = lengths(3, 3, 3, 3)
    assert length_metrics(same, torch.zeros_like(same))["masked_by_length"] == [1.0, None, None, None]


def test_numbers_that_are_not_finite_are_recorded_as_such():
    nan, infinite = float("nan"), float("inf")
    record = {
        "step": 3,
        "loss": nan,
        "entropy": 0.5,
        "by": {"edges": [0.0, 1.0], "mean": [1.0, -infinite]},
        "name": "x",
    }
    kept = recordable(record | {"quartiles": [1, None, 2.0]})
    assert kept == {
        "step": 3,
        "entropy": 0.5,
        "name": "x",
        "quartiles": [1, None, 2.0],
        "non_finite": {"loss": "nan", "by": "-inf"},
    }
    assert recordable({"step": 3, "loss": 1.0}) == {"step": 3, "loss": 1.0}


def test_what_cannot_be_measured_is_said_and_ends_nothing():
    record = measured({"step": 3}, "bounds", lambda: {"x": 1 / 0})
    assert record == {"step": 3, "not_measured": {"bounds": "ZeroDivisionError: division by zero"}}
    assert measured(record, "drift", lambda: {"y": 1}) == record | {"y": 1}
    assert set(measured(record, "drift", lambda: {"x": {}["y"]})["not_measured"]) == {"bounds", "drift"}

"""What the page's script gets of a chart is what was drawn."""

import json
import math

from holdfast.report.charts.frame import Reference
from holdfast.report.charts.plots import Series, line_chart, live_chart

NAMES = {"title": "T", "x_label": "step", "y_label": "v"}


def data(*series, **options):
    return json.loads(line_chart(series, **NAMES, **options).live)


def test_numbers_names_and_axes():
    found = data(
        Series("a", [1, 2], [0.123456, math.nan], low=[0.1, None], high=[0.2, None]), Series("b", [1, 3], [1e6, 2]),
        log_y=True, references=[Reference(1, "limit"), Reference(2, "at x", "x")], y_range=(0, 10),
    )  # fmt: skip
    assert found == {
        "t": "T", "x": "step", "y": "v", "l": 1, "r": [{"v": 1, "t": "limit"}], "h": [0, 10],
        "s": [
            {"n": "a", "x": [1, 2], "y": [0.1235, None], "lo": [0.1, None], "hi": [0.2, None]},
            {"n": "b", "x": [1, 3], "y": [1000000, 2]},
        ],
    }  # fmt: skip


def test_places_that_all_share_are_there_once():
    assert [("x" in s) for s in data(Series("a", [1, 2], [3, 4]), Series("b", [1, 2], [5, 6]))["s"]] == [True, False]


def test_a_logarithmic_horizontal_axis_is_left_as_drawn():
    assert line_chart([Series("a", [1, 2], [3, 4])], **NAMES, log_x=True).live == ""


def test_control_characters_are_spelled_out():
    (line,) = data(Series("a\u202eb", [1, 2], [3, 4]))["s"]
    assert line["n"] == "a\\u202eb"


def test_spikes_survive_thinning():
    values = [0.0] * 5000
    values[1234], values[3210] = 9.0, -9.0
    (line,) = json.loads(live_chart([Series("a", list(range(5000)), values)], **NAMES, most=100))["s"]
    assert len(line["y"]) <= 102 and {9, -9} <= set(line["y"])
    assert line["x"][line["y"].index(9)] == 1234

import math
import re
import xml.etree.ElementTree as ET

import pytest
import torch

from holdfast.errors import DataError
from holdfast.report.charts.frame import Reference
from holdfast.report.charts.plots import MOST_POINTS, Series, histogram, line_chart, scatter_chart

NAMES = {"title": "t", "x_label": "step", "y_label": "value"}


def drawn(chart, width=480):
    """Elements of a chart by class, and its plot box."""
    root = ET.fromstring(chart.markup(width))
    box = [float(v) for v in root.attrib["data-plot"].split()]
    return lambda css: [e for e in root.iter() if css in e.attrib.get("class", "").split()], box


def points_of(path):
    return [tuple(map(float, p)) for p in re.findall(r"([-\d.]+) ([-\d.]+)", path)]


def test_a_line_goes_through_its_points():
    chart = line_chart([Series("a", [0, 5, 10], [0.0, 1.0, 0.5])], **NAMES)
    find, (left, top, right, bottom) = drawn(chart)
    (curve,) = find("curve")
    # the scales are 0..10 and 0..1, so the points are at the corners and the middle of the right edge
    assert points_of(curve.attrib["d"]) == [(left, bottom), ((left + right) / 2, top), (right, (top + bottom) / 2)]


def test_a_log_line_is_linear_in_the_logarithm():
    chart = line_chart([Series("a", [1, 10, 100], [1e-4, 1e-2, 1.0])], log_x=True, log_y=True, **NAMES)
    find, (left, top, right, bottom) = drawn(chart)
    expected = [(left, bottom), ((left + right) / 2, (top + bottom) / 2), (right, top)]
    for found, place in zip(points_of(find("curve")[0].attrib["d"]), expected, strict=True):
        assert found == pytest.approx(place, abs=0.06)


def test_what_is_missing_is_a_gap():
    values = [1.0, 2.0, None, math.nan, 3.0, 4.0]
    find, _ = drawn(line_chart([Series("a", range(6), values)], **NAMES))
    assert find("curve")[0].attrib["d"].count("M") == 2
    assert len(find("f1")) == 4


def test_what_is_not_positive_is_a_gap_on_a_log_axis():
    find, _ = drawn(line_chart([Series("a", range(4), [1.0, 0.0, -1.0, 10.0])], log_y=True, **NAMES))
    assert find("curve") == []
    assert len(find("f1")) == 2


def test_the_band_reaches_from_low_to_high():
    series = Series("a", [0, 10], [0.5, 0.5], low=[0.0, 0.25], high=[1.0, 0.75])
    find, (left, top, right, bottom) = drawn(line_chart([series], **NAMES))
    height = bottom - top
    corners = [(left, top), (right, top + height / 4), (right, bottom - height / 4), (left, bottom)]
    assert points_of(find("band")[0].attrib["d"]) == [pytest.approx(c, abs=0.06) for c in corners]


def test_several_series_are_named_and_one_is_not():
    two = [Series("left one", [0, 1], [0, 1]), Series("right one", [0, 1], [1, 0])]
    text = line_chart(two, **NAMES).markup()
    assert "left one</text>" in text
    assert "right one</text>" in text
    assert "left one</text>" not in line_chart(two[:1], **NAMES).markup()


def test_long_names_go_into_a_legend_above_the_plot():
    two = [Series("a name that is far too long to stand beside", [0, 1], [0, 1]), Series("b", [0, 1], [1, 0])]
    _, narrow = drawn(line_chart(two, **NAMES), 340)
    _, plain = drawn(line_chart(two[1:], **NAMES), 340)
    assert narrow[1] > plain[1] + 15
    assert narrow[2] == plain[2]


def test_colours_that_run_out_come_back_dashed():
    find, _ = drawn(line_chart([Series(str(i), [0, 1], [i, i]) for i in range(8)], **NAMES), 480)
    assert [("dashed" in e.attrib["class"]) for e in find("curve")[-8:]] == [False] * 6 + [True] * 2


def test_a_spike_survives_thinning_and_the_note_says_so():
    values = [0.0] * 5000
    values[3777] = 9.0
    chart = line_chart([Series("a", range(5000), values)], **NAMES)
    assert len(chart.rows) <= MOST_POINTS
    assert any(row.cells == ("3,777", "9") for row in chart.rows)
    assert "of 5000 points" in chart.note
    assert "highest 9" in chart.description


def test_thinned_series_over_the_same_steps_keep_the_same_rows():
    steps = range(3000)
    two = [Series("a", steps, [math.sin(i) for i in steps]), Series("b", steps, [math.cos(i / 7) for i in steps])]
    chart = line_chart(two, **NAMES)
    assert all("–" not in row.cells for row in chart.rows)


def test_a_rule_is_drawn_at_its_value_and_widens_the_scale():
    chart = line_chart([Series("a", [0, 1], [0.1, 0.2])], references=[Reference(1, "limit")], **NAMES)
    find, (left, top, right, _) = drawn(chart)
    assert find("reference")[0].attrib["d"] == f"M{left:.1f} {top:.1f}H{right:.1f}"
    assert "limit</text>" in chart.markup()


def test_the_table_places_each_row_for_the_hover_readout():
    chart = line_chart([Series("a", [0, 5, 10], [1, 2, 3]), Series("b", [5], [7])], **NAMES)
    assert chart.headers == ("step", "a", "b")
    assert [(row.cells, row.u) for row in chart.rows] == [
        (("0", "1", "–"), 0.0),
        (("5", "2", "7"), 0.5),
        (("10", "3", "–"), 1.0),
    ]


def test_tensors_are_welcome_and_unequal_lengths_are_not():
    assert "highest 2" in line_chart([Series("a", torch.arange(3), torch.arange(3.0))], **NAMES).description
    with pytest.raises(DataError, match="series 'a': x, y, low and high must have one length, not 2, 1"):
        line_chart([Series("a", [0, 1], [0])], **NAMES)


def test_nothing_measured_is_said():
    assert "a: nothing measured" in line_chart([Series("a", [], [])], **NAMES).description
    assert line_chart([], **NAMES).markup().startswith("<svg")


def test_a_scatter_has_a_dot_for_every_point():
    chart = scatter_chart([Series("a", [1, 2], [1, 2]), Series("b", [3], [math.nan])], **NAMES)
    find, _ = drawn(chart)
    assert len([e for e in find("f1") if e.attrib["r"] == "3.2"]) == 2
    assert [row.cells for row in chart.rows] == [("a", "1", "1"), ("a", "2", "2")]
    assert (chart.rows[0].u, chart.rows[0].v) == (0.0, 1.0)


def test_histogram_counts_every_value_once():
    chart = histogram([0.0, 0.1, 0.2, 0.9, 1.0, None], title="h", x_label="x", bins=2)
    assert [row.cells for row in chart.rows] == [("0 to 0.5", "3"), ("0.5 to 1", "2")]
    assert chart.note == "1 of 6 values cannot be drawn (missing or not positive)."
    find, (_, top, _, bottom) = drawn(chart)
    heights = [float(e.attrib["height"]) for e in find("f1")]
    assert heights[1] / heights[0] == pytest.approx(2 / 3, abs=0.01)
    assert heights[0] == pytest.approx(bottom - top, abs=0.1)


def test_histogram_bins_are_equal_in_logarithm():
    chart = histogram([1e-4, 1e-3, 5e-3, 1.0], title="h", x_label="x", bins=2, log_x=True, log_y=True)
    assert [row.cells for row in chart.rows] == [("10⁻⁴ to 0.01".replace("10⁻⁴", "1×10⁻⁴"), "3"), ("0.01 to 1", "1")]
    with pytest.raises(DataError, match="bins=0"):
        histogram([1.0], title="h", x_label="x", bins=0)

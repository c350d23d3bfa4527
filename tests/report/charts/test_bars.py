import math
import xml.etree.ElementTree as ET

import pytest

from holdfast.errors import DataError
from holdfast.report.charts.bars import bar_chart, dot_chart, heat_map, parts_chart
from holdfast.report.charts.frame import Reference


def drawn(chart, width=500):
    root = ET.fromstring(chart.markup(width))
    box = [float(v) for v in root.attrib["data-plot"].split()]
    return lambda css: [e.attrib for e in root.iter() if css in e.attrib.get("class", "").split()], box


def test_bars_start_at_zero_and_end_at_their_value():
    chart = bar_chart(["a", "b"], [25, 100], title="t", x_label="%", x_range=(0, 100))
    find, (left, _, right, _) = drawn(chart)
    first, second = find("f1")
    assert float(first["x"]) == pytest.approx(left, abs=0.1)
    assert float(first["width"]) == pytest.approx((right - left) / 4, abs=0.1)
    assert float(second["width"]) == pytest.approx(right - left, abs=0.1)
    assert [row.cells for row in chart.rows] == [("a", "25"), ("b", "100")]


def test_a_negative_bar_goes_left_of_zero():
    find, (left, _, right, _) = drawn(bar_chart(["a", "b"], [-1, 1], title="t", x_label="v"))
    first, second = find("f1")
    middle = (left + right) / 2
    assert float(first["x"]) + float(first["width"]) == pytest.approx(middle, abs=0.2)
    assert float(second["x"]) == pytest.approx(middle, abs=0.2)


def test_an_interval_is_drawn_and_listed():
    chart = bar_chart(["a", "b"], [0.5, 0.2], title="t", x_label="v", intervals=[(0.25, 1.0), None])
    find, _ = drawn(chart)
    assert len(find("whisker")) == 1
    assert [row.cells for row in chart.rows] == [("a", "0.5", "0.25", "1"), ("b", "0.2", "–", "–")]


def test_a_missing_bar_says_so():
    chart = bar_chart(["a", "b"], [None, 2], title="t", x_label="v")
    assert "not measured</text>" in chart.markup()
    assert len(drawn(chart)[0]("f1")) == 1


def test_a_rule_stands_at_its_value():
    chart = bar_chart(["a"], [1], title="t", x_label="v", references=[Reference(2, "limit")])
    find, (_, _, right, _) = drawn(chart)
    x = float(find("reference")[0]["d"].split()[0][1:])
    assert x == pytest.approx(right, abs=0.1)
    assert "limit</text>" in chart.markup()


def test_lengths_have_to_fit():
    with pytest.raises(DataError, match="values: 1 entries for 2 names"):
        bar_chart(["a", "b"], [1], title="t", x_label="v")
    with pytest.raises(DataError, match="columns: 1 entries for 2 names"):
        heat_map([[1.0]], rows=["r"], columns=["a", "b"], title="t", x_label="x", y_label="y")


def test_dots_show_every_seed_and_their_mean():
    chart = dot_chart(["a", "b"], [[0.0, 50.0, 100.0], []], title="t", x_label="%", x_range=(0, 100))
    find, (left, _, right, _) = drawn(chart)
    assert [float(d["cx"]) for d in find("f1")] == pytest.approx([left, (left + right) / 2, right], abs=0.1)
    assert float(find("mean")[0]["d"].split()[0][1:]) == pytest.approx((left + right) / 2, abs=0.1)
    assert chart.rows[0].cells == ("a", "50", "0, 50, 100")
    assert "not measured</text>" in chart.markup()


def test_parts_share_the_whole_width():
    chart = parts_chart(["generate", "update"], [3, 1], title="t", unit="s")
    find, _ = drawn(chart, 400)
    assert [float(r["width"]) for r in find("ring")] == [300, 100]
    assert [row.cells for row in chart.rows] == [("generate", "3 s, 75 %"), ("update", "1 s, 25 %")]
    assert [row.u for row in chart.rows] == [0.375, 0.875]
    with pytest.raises(DataError, match="leave a missing part out"):
        parts_chart(["a"], [math.nan], title="t", unit="s")


def test_heat_runs_from_the_lowest_to_the_highest_cell():
    chart = heat_map(
        [[0.0, 5.0], [10.0, None]], rows=["r", "s"], columns=["1", "2"], title="t", x_label="x", y_label="y"
    )
    find, (left, _, right, _) = drawn(chart)
    shades = [c["fill-opacity"] for c in find("cell")[:3]]
    assert shades == ["0.06", "0.53", "1.00"]
    assert len(find("missing")) == 1
    assert float(find("cell")[1]["x"]) == pytest.approx((left + right) / 2, abs=0.1)
    assert (chart.rows[1].cells, chart.rows[1].u, chart.rows[1].v) == (("r", "2", "5"), 0.75, 0.25)

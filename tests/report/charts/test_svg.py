import itertools
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from holdfast.errors import DataError
from holdfast.report.charts import svg
from holdfast.report.charts.plots import Series, line_chart
from holdfast.report.charts.svg import COLOURS, DARK, LIGHT, escape, label, shorten, spread, tag, text_width, visible

# Machado, Oliveira and Fernandes 2009, severity 1, in linear RGB.
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
}


def linear(colour):
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def oklab(rgb):
    to_lms = [
        [0.41222147, 0.53633254, 0.05144599],
        [0.2119035, 0.68069955, 0.10739696],
        [0.08830246, 0.28171884, 0.6299787],
    ]
    to_lab = [
        [0.21045426, 0.79361779, -0.00407205],
        [1.9779985, -2.42859221, 0.45059371],
        [0.02590404, 0.78277177, -0.80867577],
    ]
    return np.array(to_lab) @ np.cbrt(np.array(to_lms) @ np.clip(rgb, 0, 1))


def contrast(a, b):
    high, low = sorted((linear(c) @ [0.2126, 0.7152, 0.0722] for c in (a, b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("eyes", BLINDNESS)
def test_series_colours_stay_apart_for_every_eye(palette, eyes):
    seen = [oklab(np.array(BLINDNESS[eyes]) @ linear(palette[f"s{i}"])) for i in range(1, COLOURS + 1)]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 0.065


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_marks_have_contrast(palette):
    assert contrast(palette["ink"], palette["surface"]) >= 7
    assert contrast(palette["muted"], palette["surface"]) >= 4.5
    assert all(contrast(palette[f"s{i}"], palette["surface"]) >= 3 for i in range(1, COLOURS + 1))


def test_escaping_leaves_no_markup_and_no_direction_change():
    assert escape('<b a="x">\'&') == "&lt;b a=&quot;x&quot;&gt;&#x27;&amp;"
    assert visible("a\u202eb\x00\ud800\n\u200b") == "a\\u202eb\\x00\\ud800\\n\\u200b"
    assert visible("naïve Σ 語 😀") == "naïve Σ 語 😀"


def test_tags_escape_their_attributes():
    assert tag("a", class_='x"y', data_n=1.25, none=None) == '<a class="x&quot;y" data-n="1.2"/>'
    assert "<script>" not in label("<script>", 0.0, 0.0)


def test_labels_are_moved_apart_and_kept_inside():
    # 10, 10.5 and 11 need 14 between them: 10, 24, 38; the last may not pass 30, so all move up by 8.
    assert spread([10, 11, 10.5], 14, 0, 30) == [2, 30, 16]
    assert spread([5, 50], 14, 0, 100) == [5, 50]


def test_shortened_text_fits():
    assert shorten("short", 200) == "short"
    cut = shorten("a very long label indeed", 60)
    assert cut.endswith("…")
    assert text_width(cut) <= 60


def chart():
    return line_chart([Series("<a>", [0, 1], [1, 2])], title="T <i>", x_label="x & y", y_label="v")


def test_a_standalone_file_is_xml_with_title_description_and_both_palettes(tmp_path):
    path = chart().save(tmp_path / "figure.svg")
    root = ET.fromstring(path.read_text(encoding="utf-8"))
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    assert root.attrib["role"] == "img"
    assert root.find(f"{space}title").text == "T <i>"
    assert "<a>: 1 at 0, 2 at 1" in root.find(f"{space}desc").text
    style = root.find(f"{space}style").text
    assert LIGHT["s1"] in style
    assert DARK["s1"] in style.split("@media")[1]
    assert "var(" not in style


def test_an_inline_chart_is_xml_named_and_sized():
    root = ET.fromstring(chart().markup(340))
    assert root.attrib["viewBox"].startswith("0 0 340 ")
    left, top, right, bottom = map(float, root.attrib["data-plot"].split())
    assert 0 <= left < right <= 340
    assert 0 < top < bottom


def test_a_plot_is_only_written_as_svg_and_where_it_can_be(tmp_path):
    with pytest.raises(DataError, match=r"plots are SVG, so name the file figure\.svg"):
        chart().save(tmp_path / "figure.png")
    with pytest.raises(DataError, match="choose a folder that exists"):
        chart().save(tmp_path / "missing" / "figure.svg")


def test_the_style_sheet_knows_every_class_that_charts_use():
    css = svg.chart_css()
    for name in ("grid", "axis", "reference", "curve", "band", "dashed", "cell", "missing", "whisker", "mean", "range"):
        assert f".chart .{name}" in css

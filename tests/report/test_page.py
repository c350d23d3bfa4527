import base64
import hashlib
import re

import pytest

from holdfast.errors import DataError
from holdfast.report.charts.bars import bar_chart, heat_map
from holdfast.report.charts.plots import Series, line_chart
from holdfast.report.page import (
    Cell,
    Markup,
    element,
    facts,
    figure,
    folded,
    html,
    notices,
    page,
    paragraph,
    preformatted,
    section,
    table,
    tiles,
    write_page,
)

HOSTILE = '</script><script>alert("x")</script><img src=x onerror=alert(1)>\u202e'


def test_text_is_escaped_once_and_markup_never():
    inner = element("b", "1 < 2 & 'so'")
    assert inner == "<b>1 &lt; 2 &amp; &#x27;so&#x27;</b>"
    assert paragraph("a & b ", inner) == "<p>a &amp; b <b>1 &lt; 2 &amp; &#x27;so&#x27;</b></p>"
    assert html(Markup("<i>")) == "<i>"


def test_no_builder_lets_hostile_text_through(parse):
    chart = line_chart([Series(HOSTILE, [0, 1], [0, 1])], title=HOSTILE, x_label=HOSTILE, y_label=HOSTILE)
    document = page(
        HOSTILE,
        section(HOSTILE, paragraph(HOSTILE), lead=HOSTILE),
        figure(chart, HOSTILE, full=True),
        table([HOSTILE, "n"], [(HOSTILE, Cell(HOSTILE, HOSTILE))], label=HOSTILE, sortable=True),
        tiles([(HOSTILE, HOSTILE, HOSTILE)]),
        facts([(HOSTILE, HOSTILE)]),
        notices([(HOSTILE, HOSTILE)]),
        folded(HOSTILE, preformatted(f"{HOSTILE}\n{HOSTILE}")),
        kicker=HOSTILE,
        verdict=HOSTILE,
        footer=HOSTILE,
    )
    seen = parse(document)
    assert len(seen.all("script")) == 1
    assert seen.all("img") == []
    assert not any(name.startswith("on") for _, attributes in seen.elements for name in attributes)
    assert "\u202e" not in document
    assert seen.text.count('alert("x")') >= 15


def test_a_page_loads_nothing_and_forbids_loading(parse):
    seen = parse(page("t", paragraph("x")))
    policy = next(a["content"] for a in seen.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    links = [a.get("href") or a.get("src") for t, a in seen.elements if "href" in a or "src" in a]
    assert links == ["data:,"]
    style = page("t").split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_a_page_has_both_colour_schemes_and_fits_a_telephone(parse):
    document = page("t")
    style = document.split("<style>")[1].split("</style>")[0]
    assert "@media(prefers-color-scheme:dark)" in style
    assert "--surface:#ffffff" in style.split("@media(prefers-color-scheme:dark)")[0]
    assert "--surface:#131519" in style.split("@media(prefers-color-scheme:dark)")[1]
    assert {"name": "viewport", "content": "width=device-width,initial-scale=1"} in parse(document).all("meta")


def test_every_colour_variable_in_use_is_defined():
    import re

    style = page("t").split("<style>")[1].split("</style>")[0]
    assert set(re.findall(r"var\(--([\w-]+)\)", style)) <= set(re.findall(r"--([\w-]+):", style))


def test_a_figure_has_a_drawing_per_width_and_one_table(parse):
    chart = line_chart([Series("a", [1, 2], [3, 4])], title="T", x_label="step", y_label="v")
    seen = parse(figure(chart, full=True))
    widths = [a["viewbox"].split()[2] for a in seen.all("svg")]
    assert widths == ["340", "500", "1000"]
    assert all(a["role"] == "img" for a in seen.all("svg"))
    assert [a.get("data-u") for a in seen.all("tr")] == [None, "0", "1"]
    assert seen.text.count("T ") >= 1


def test_a_table_aligns_sorts_and_marks(parse):
    seen = parse(
        table(
            ("name", "n"), [("a", Cell("1.5", 1.5)), ("b", 2)], label="x", numeric=(1,), marks={1: "dim"}, sortable=True
        )
    )
    assert [a.get("data-sort") for a in seen.all("td")] == ["1.5", None]
    assert len(seen.all("td", "num")) == 2
    assert len(seen.all("tr", "dim")) == 1
    assert len(seen.all("button")) == 2


def test_a_page_that_cannot_be_written_says_where(tmp_path):
    with pytest.raises(DataError, match="give a folder that you may write to"):
        write_page(tmp_path / "missing" / "report.html", page("t"))


def test_the_only_script_that_may_run_is_ours(parse):
    document = page("t", paragraph("x"))
    policy = next(a["content"] for a in parse(document).all("meta") if "http-equiv" in a)
    script = re.search(r"<script>(.*)</script>", document, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy and "\r" not in script


def test_a_figure_of_one_place_is_a_small_table(parse):
    one_bar = bar_chart(["all"], [0.5], title="T", x_label="share")
    one_step = line_chart([Series("a", [3], [0.5])], title="T", x_label="step", y_label="v")
    one_column = heat_map([[1.0], [2.0]], rows=["r", "s"], columns=["0"], title="T", x_label="step", y_label="v")
    for chart, said in ((one_bar, "all 0.5"), (one_step, "3 0.5"), (one_column, "s 0 2")):
        seen = parse(figure(chart, "Caption."))
        assert seen.all("svg") == [] and said in seen.text and "Caption." in seen.text
    two = bar_chart(["a", "b"], [0.5, 0.6], title="T", x_label="share")
    assert parse(figure(two)).all("svg")


def test_only_a_page_with_files_beside_it_lets_its_script_load_them(parse):
    def policy(document):
        return next(a["content"] for a in parse(document).all("meta") if "http-equiv" in a)

    assert "'strict-dynamic'" not in policy(page("t")) and "'strict-dynamic'" in policy(page("t", files=True))
    assert "unsafe-inline'; script-src 'sha256-" in policy(page("t", files=True))

"""The generated pages of the table: fresh, complete, and drawn from the objects."""

from pathlib import Path

import pytest

from holdfast import list_presets, preset
from holdfast.commands.presets import run
from holdfast.report.presets import gate_chart, index_page, preset_page, write_pages

DOCS = Path(__file__).parents[2] / "docs" / "presets"


def test_the_committed_pages_are_those_of_the_table():
    """Regenerate with: python -m holdfast.report.presets docs/presets"""
    assert (DOCS / "README.md").read_text(encoding="utf-8") == index_page()
    for name in list_presets():
        assert (DOCS / f"{name}.md").read_text(encoding="utf-8") == preset_page(name), name
        assert (DOCS / f"{name}.svg").is_file()
    assert {path.stem for path in DOCS.glob("*.md")} == {"README", *list_presets()}


@pytest.mark.slow
def test_writing_all_pages(tmp_path):
    assert write_pages(tmp_path / "new") == 1 + 2 * len(list_presets())


@pytest.mark.parametrize("name", ["ppo", "cispo", "sspo", "vespo", "aspo", "trm+sspo+kl_cov"])
def test_charts_show_both_signs(name):
    chart = gate_chart(preset(name))
    assert "A &gt; 0" in chart.standalone() and "A &lt; 0" in chart.standalone()


def test_the_command_prints_factors_and_writes_a_figure(tmp_path, capsys):
    assert run(["ppo"]) == 0
    out = capsys.readouterr().out
    # Clip at .2, dual 3: A > 0 stops above 1.2; A < 0 is silent below .8 and above 3.
    rows = {
        line.split()[0]: line.split() for line in out.splitlines() if line.strip().startswith(("0.", "1", "2", "4"))
    }
    assert "0.250" in rows["0.25"] and "0.000" in rows["0.25"]
    assert "0.000" in rows["1.25"] and "1.250" in rows["1.25"]
    assert rows["4"].count("0.000") == 2
    assert run(["sspo", "--plot", str(tmp_path / "gate.svg")]) == 0
    assert (tmp_path / "gate.svg").read_text().startswith("<?xml")
    with pytest.raises(SystemExit):
        run(["--plot", "x.svg"])

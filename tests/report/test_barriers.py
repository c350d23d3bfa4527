"""Every kind of report in headless Chromium: axe and the console are silent, nothing is too wide or run together."""

from pathlib import Path

import pytest

from browser.visiting import NEEDS, barriers
from holdfast.report.compare import write_compare_report
from holdfast.report.overlay import write_overlay
from holdfast.report.run import write_run_report
from holdfast.study.evidence import write_charts

pytestmark = [*NEEDS, pytest.mark.slow]
EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence" / "trust_region.json"


def test_a_run(run_folder):
    assert barriers(write_run_report(run_folder(steps=8)[0])) == []


def test_a_comparison(results_folder):
    assert barriers(write_compare_report(results_folder())) == []


def test_two_runs_over_each_other(run_folder, tmp_path):
    folders = [run_folder("one", steps=4)[0], run_folder("two", steps=4)[0]]
    assert barriers(write_overlay(folders, tmp_path / "overlay.html")) == []


def test_a_study(tmp_path):
    page = tmp_path / "report.html"
    assert barriers(write_charts(page, EVIDENCE)) == []


def test_a_barrier_is_seen(run_folder):
    page = write_run_report(run_folder(steps=2)[0])
    text = page.read_text(encoding="utf-8")
    page.write_text(
        text.replace("</main>", '<dl class="tiles" style="width:120px"><dd style="white-space:nowrap">a text that is '
                     'longer than its box</dd></dl><img src="data:,"></main>', 1),
        encoding="utf-8",
    )  # fmt: skip
    seen = " ".join(barriers(page))
    assert "a text that is longer" in seen
    assert "image-alt" in seen

"""The pages in headless Chromium: no console message, nothing wider than the screen, readouts that work."""

import html
import json
import re
import shutil
import subprocess

import pytest

from holdfast.report.compare import write_compare_report
from holdfast.report.run import write_run_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: pages are checked by structure only")

WIDE = """[...d.querySelectorAll("main *")]
  .filter((e) => e.getBoundingClientRect().right > w.innerWidth + 1 && !e.closest(".scroll"))
  .map((e) => e.tagName + "." + e.getAttribute("class"))"""
USE = """
  const svg = [...d.querySelectorAll("svg.chart")].find((s) => s.getBoundingClientRect().width > 0);
  const box = svg.getBoundingClientRect(), tip = () => d.getElementById("tip").innerText;
  svg.dispatchEvent(new w.PointerEvent("pointermove",
    {clientX: box.left + box.width * 0.99, clientY: box.top + box.height / 2, bubbles: true}));
  const chart = tip();
  const viewer = d.querySelector(".tokens"), tokens = viewer.querySelectorAll("[data-tip]");
  for (let i = 0; i < 3; i++) viewer.dispatchEvent(new w.KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
  const spoken = viewer.parentNode.querySelector(".readout").textContent;
  tokens[0].dispatchEvent(new w.PointerEvent("pointerover", {bubbles: true}));
  return {chart, spoken, token: tip()};"""
SORT = """
  const table = d.querySelector("table.sortable");
  const names = () => [...table.tBodies[0].rows].map((r) => r.cells[0].innerText);
  const before = names(), button = table.querySelectorAll("th button")[1];
  button.click();
  const once = names();
  button.click();
  return {before, once, twice: names(), sort: table.querySelectorAll("th")[1].getAttribute("aria-sort")};"""


def visit(page, folder, script, width=1200, dark=False):
    """Open a page in a frame of some width, run a script on its document `d` and window `w`; result and messages."""
    wrapper = folder / "wrapper.html"
    document = html.escape(page.read_text(encoding="utf-8"), quote=True)
    wrapper.write_text(
        f'<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f'<iframe id="f" style="width:{width}px;height:900px;border:0" srcdoc="{document}"></iframe>'
        f'<pre id="out"></pre>'
        f'<script>document.getElementById("f").addEventListener("load", (event) => {{'
        f"const w = event.target.contentWindow, d = w.document; let out;"
        f"try {{ out = (() => {{ {script} }})(); }} catch (error) {{ out = String(error); }}"
        f'document.getElementById("out").textContent = JSON.stringify(out); }});</script>',
        encoding="utf-8",
    )
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *quiet]
    command += ["--window-size=1300,1000", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=8000"]
    command += [*(["--force-dark-mode"] if dark else []), "--dump-dom", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, "the page did not load"
    return json.loads(html.unescape(found[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture
def report(run_folder):
    return write_run_report(run_folder(steps=8)[0])


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_run_fits_a_telephone_without_a_console_message(report, tmp_path, dark):
    script = f"return {{wide: {WIDE}, colour: w.getComputedStyle(d.body).backgroundColor}};"
    seen, messages = visit(report, tmp_path, script, width=380, dark=dark)
    assert seen == {"wide": [], "colour": "rgb(19, 21, 25)" if dark else "rgb(255, 255, 255)"}
    assert messages == []


def test_hover_and_keys_read_out_values(report, tmp_path):
    seen, messages = visit(report, tmp_path, USE)
    assert seen["chart"].startswith("step 8")
    assert "training, sampled" in seen["chart"]
    assert re.match(r"3  .+: engine logprob −", seen["spoken"])
    assert seen["token"].startswith("1 ")
    assert "log ratio" in seen["token"]
    assert messages == []


def test_a_comparison_fits_and_sorts(results_folder, tmp_path):
    page = write_compare_report(results_folder())
    seen, messages = visit(page, tmp_path, SORT)
    assert seen["once"] == seen["before"]
    assert seen["twice"] == seen["before"][::-1]
    assert seen["sort"] == "ascending"
    wide, _ = visit(page, tmp_path, f"return {WIDE};", width=380)
    assert (wide, messages) == ([], [])

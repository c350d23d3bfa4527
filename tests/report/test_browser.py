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
  const svg = [...d.querySelectorAll(".host svg.chart")].find((s) => s.getBoundingClientRect().width > 0);
  const box = svg.getBoundingClientRect(), tip = () => d.getElementById("tip").innerText;
  svg.dispatchEvent(new w.PointerEvent("pointermove",
    {clientX: box.left + box.width * 0.99, clientY: box.top + box.height / 2, bubbles: true}));
  const chart = tip();
  const viewer = d.querySelector(".tokens"), tokens = viewer.querySelectorAll("[data-tip]");
  for (let i = 0; i < 3; i++) viewer.dispatchEvent(new w.KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
  const spoken = viewer.parentNode.querySelector(".readout").textContent;
  tokens[0].dispatchEvent(new w.PointerEvent("pointerover", {bubbles: true}));
  return {chart, spoken, token: tip()};"""
CURVES = """
  const charts = [...d.querySelectorAll("figure.alive")].filter((f) => f.querySelector(".host svg"));
  const [first, second] = charts, host = first.querySelector(".host");
  const ticks = (f) => [...f.querySelectorAll(".host text.tick")].map((t) => t.textContent).join(" ");
  const at = (type, share) => {
    const box = host.getBoundingClientRect();
    const place = {clientX: box.left + box.width * share, clientY: box.top + 60, pointerId: 1, bubbles: true};
    host.dispatchEvent(new w.PointerEvent(type, place));
  };
  at("pointermove", 0.5);
  const linked = second.querySelectorAll(".pins .pin").length;
  const before = ticks(second);
  at("pointerdown", 0.5); at("pointermove", 0.9); at("pointerup", 0.9);
  const zoomed = ticks(second), offered = !second.querySelector(".tool").hidden;
  host.dispatchEvent(new w.KeyboardEvent("keydown", {key: "0", bubbles: true}));
  const back = ticks(second);
  const log = [...first.querySelectorAll(".tool")].find((b) => b.textContent === "log");
  const plain = ticks(first);
  log.click();
  const logarithmic = ticks(first);
  const lines = () => first.querySelectorAll(".host path.curve").length;
  const all = lines();
  first.querySelector(".key-of").click();
  host.dispatchEvent(new w.KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
  const spoken = first.querySelector(".spoken").textContent, pressed = log.getAttribute("aria-pressed");
  const still = first.querySelectorAll(":scope > .size-s svg").length;
  return {linked, before, zoomed, offered, back, plain, logarithmic, all, fewer: lines(), pressed, spoken, still};"""
BROWSE = """
  const rows = () => [...d.querySelectorAll(".browse tbody tr")].map((r) => [...r.cells].map((c) => c.textContent));
  const worst = rows().map((r) => Number(r[5]));
  const count = () => d.querySelector(".pager span").textContent;
  const whole = count();
  const choose = (i, value) => {
    const field = d.querySelectorAll(".browse select, .browse input")[i];
    field.value = value;
    field.dispatchEvent(new w.Event("input"));
  };
  choose(1, "rejected");
  const rejected = rows().map((r) => r[3]);
  choose(1, "any"); choose(2, "3"); choose(3, "3");
  const step = [...new Set(rows().map((r) => r[1]))], narrowed = count();
  choose(0, "lowest reward first");
  const rewards = rows().map((r) => Number(r[2]));
  choose(6, "no such prompt");
  return {worst, whole, rejected, step, narrowed, rewards, none: count()};"""
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
@pytest.mark.slow
def test_a_run_fits_a_telephone_without_a_console_message(report, tmp_path, dark):
    script = f"return {{wide: {WIDE}, colour: w.getComputedStyle(d.body).backgroundColor}};"
    seen, messages = visit(report, tmp_path, script, width=380, dark=dark)
    assert seen == {"wide": [], "colour": "rgb(19, 21, 25)" if dark else "rgb(255, 255, 255)"}
    assert messages == []


def test_hover_and_keys_read_out_values(report, tmp_path):
    seen, messages = visit(report, tmp_path, USE)
    assert seen["chart"].startswith("step 8")  # read off the figure that the script drew
    assert "training, sampled" in seen["chart"]
    assert re.match(r"3  .+: engine logprob −", seen["spoken"])
    assert seen["token"].startswith("1 ")
    assert "log ratio" in seen["token"]
    assert messages == []


@pytest.mark.slow
def test_a_comparison_fits_and_sorts(results_folder, tmp_path):
    page = write_compare_report(results_folder())
    seen, messages = visit(page, tmp_path, SORT)
    assert seen["once"] == seen["before"]
    assert seen["twice"] == seen["before"][::-1]
    assert seen["sort"] == "ascending"
    wide, _ = visit(page, tmp_path, f"return {WIDE};", width=380)
    assert (wide, messages) == ([], [])


def test_curves_zoom_together_and_read_out(report, tmp_path):
    seen, messages = visit(report, tmp_path, CURVES)
    assert seen["linked"] == 1, "one cursor for all"
    assert seen["zoomed"] != seen["before"] == seen["back"] and seen["offered"]
    assert seen["logarithmic"] != seen["plain"] and seen["pressed"] == "true"
    assert seen["fewer"] == seen["all"] - 1, "a series can be taken away"
    assert re.match(r"step \d+: .*training, sampled 0\.", seen["spoken"])
    assert seen["still"] == 1, "what Python drew stays for print"
    assert messages == []


def test_rollouts_are_browsed_worst_first(report, tmp_path):
    seen, messages = visit(report, tmp_path, BROWSE)
    assert seen["worst"] == sorted(seen["worst"], reverse=True) and len(seen["worst"]) == 15
    assert seen["whole"] == "1 to 15 of 32" and seen["narrowed"] == "1 to 4 of 4 (32 logged)"
    assert set(seen["rejected"]) == {"rejected"} and seen["step"] == ["3"]
    assert seen["rewards"] == sorted(seen["rewards"]) and seen["none"] == "none (32 logged)"
    assert messages == []


@pytest.mark.slow
def test_a_large_log_is_read_from_a_disk(run_folder, monkeypatch, tmp_path):
    monkeypatch.setattr("holdfast.report.browse.MOST_EMBEDDED", 100)
    page = write_run_report(run_folder(steps=2)[0])
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--no-first-run"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "1 to 8 of 8" in done.stdout
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []

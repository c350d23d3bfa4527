"""The audit's page in headless Chromium: silent, offline, sortable, readable by key, on a telephone, in the dark."""

import dataclasses

import numpy as np
import pytest

from browser.visiting import NEEDS, SIZES, visit
from holdfast.audit.judge.advice import advise_on
from holdfast.audit.judge.auditor import Auditor
from holdfast.audit.judge.finding import Finding
from holdfast.audit.read.columns import pack
from holdfast.audit.read.reading import Reading
from holdfast.audit.show.outputs import write_reports
from holdfast.audit.simulate import FAULTS, clean_run

pytestmark = NEEDS
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def report(folder, rollouts, **changes):
    auditor = Auditor(Reading())
    for chunk in pack(rollouts):
        auditor.feed(chunk, "made")
    audit = dataclasses.replace(auditor.result(), **changes)
    audit.reading.reject("some.jsonl", 7, "lengths differ", "3 and 4")
    return write_reports(folder, audit, advise_on(audit), title="A run")[0]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    small = {"steps": 3, "prompts": 6, "group_size": 4, "mean_length": 60}
    finding = Finding(
        "made", "drift", "critical", f"7 tokens {EVIL}", "It means.", "Mend it.", {"tokens": 7},
        settings={"verl": "algorithm.rollout_correction.rollout_rs=seq_max_k2 " * 3, "TRL": "one line"},
    )  # fmt: skip
    warned = dataclasses.replace(finding, severity="warning", headline="W" * 90)
    rollouts = [dataclasses.replace(r, environment=EVIL) for r in clean_run(0, age=1, texts=True, **small)]
    rollouts += clean_run(1, age=1, texts=True, **small)
    folder = tmp_path_factory.mktemp("page")
    return visit(report(folder, rollouts, findings=(finding, warned), skipped={"some_check": ("kl_exact",)}))


def test_it_says_nothing_to_the_console_and_asks_nothing_of_the_network(seen):
    assert seen["messages"] == []
    assert [url for url in seen["requests"] if not url.startswith("data:")] == []


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_the_screen(seen, size):
    assert seen["wide"][size] == {"page": 0, "elements": []}


@pytest.mark.parametrize("size", SIZES)
def test_no_text_runs_out_of_its_box(seen, size):
    assert seen["spilled"][size] == []


def test_it_follows_the_readers_colour_scheme(seen):
    assert {size: seen["colour"][size] for size in SIZES} == dict(
        zip(SIZES, ["rgb(255, 255, 255)", "rgb(19, 21, 25)"] * 2, strict=True)
    )


@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_no_barrier(seen, size):
    assert seen["axe"][size] == []


def test_tables_sort_by_mouse_and_key(seen):
    assert seen["once"] == sorted(seen["once"], reverse=True)
    assert seen["twice"] == sorted(seen["twice"])
    assert seen["once"] != seen["twice"]


def test_tokens_are_read_by_key_and_by_pointing(seen):
    assert seen["spoken"].startswith("3  ")
    assert "log ratio" in seen["spoken"] and "engine logprob −" in seen["spoken"]
    assert seen["tip"].startswith("1")


def test_evidence_opens_and_settings_copy(seen):
    assert seen["opened"] is True
    assert seen["copied"] in ("copied", "selected")


def test_a_page_with_a_data_error(tmp_path):
    fault = FAULTS["nan"]
    run = fault.apply(clean_run(0, texts=True), fault.strengths[-1], np.random.default_rng(0))
    met = visit(report(tmp_path, run))
    assert met["messages"] == []
    assert [met["axe"][size] for size in SIZES] == [[]] * 4
    assert [met["wide"][size]["page"] for size in SIZES] == [0] * 4

"""Page, terminal and JSON of a preflight say the same, and only what was seen."""

import dataclasses
import json

import pytest
from rich.console import Console

from browser.visiting import NEEDS, barriers
from holdfast.audit.judge.finding import Finding
from holdfast.preflight.causes import Cause
from holdfast.preflight.show.jsonout import SCHEMA, preflight_dict
from holdfast.preflight.show.page import write_preflight
from holdfast.preflight.show.terminal import print_preflight
from holdfast.preflight.show.words import cause_row, cause_words, engine_of, repeat_words, scope
from holdfast.preflight.stability import Repeat

EVIL = "<script>alert(1)</script>\x1b[31m"


def printed(found):
    console = Console(width=100, force_terminal=False)
    with console.capture() as caught:
        print_preflight(console, found)
    return caught.get()


def test_the_terminal_has_the_verdict_the_causes_and_lines_to_copy(healthy):
    text = printed(healthy)
    assert text.startswith("Ready: ")
    for cause in healthy.causes:
        assert f"  {cause.name}: {cause.state}" in text
    assert "synced: the engine samples with the weights that it was given" in text
    for line in healthy.proposal.lines["trm_max"].splitlines():
        assert line in text, "a line to copy is broken"
    assert "planned: responses of 96 tokens, 1 updates behind" in text


def test_the_document_is_plain_and_complete(healthy):
    document = preflight_dict(healthy)
    again = json.loads(json.dumps(document, allow_nan=False))
    assert again["schema"] == SCHEMA == "holdfast.preflight/1"
    assert again["verdict"] == {"tone": "clean", "headline": healthy.headline}
    assert again["gap"]["size"]["value"] == healthy.gap.size.value
    assert [cause["name"] for cause in again["causes"]] == [cause.name for cause in healthy.causes]
    assert again["sync"]["verdict"] == "synced" and "before_view" not in again["sync"]
    assert again["plan"]["framework"] == "verl" and again["plan"]["length"] == 96
    assert again["audit"]["schema"].startswith("holdfast.audit/")
    assert sum(row["tokens"] for row in again["by_entropy"]) == healthy.gap.tokens


def test_the_page_shows_all_of_it_and_loads_nothing(healthy, tokenizer, tmp_path):
    page, document = write_preflight(tmp_path / "out", healthy, tokenizer)
    text = page.read_text(encoding="utf-8")
    for heading in (
        "Findings",
        "Where the gap comes from",
        "Weight sync",
        "What to set",
        "Drift",
        "by entropy",
        "worst",
    ):
        assert heading in text
    assert "default-src &#x27;none&#x27;" in text or "default-src 'none'" in text
    assert "rollout_rs=seq_max_k2" in text
    assert json.loads(document.read_text(encoding="utf-8"))["schema"] == SCHEMA


@pytest.mark.slow
@NEEDS[0]
@NEEDS[1]
def test_nothing_keeps_anybody_from_reading_the_page(healthy, tokenizer, tmp_path):
    assert barriers(write_preflight(tmp_path / "out", healthy, tokenizer)[0]) == []


def test_text_from_others_steers_neither_page_nor_terminal(healthy, tokenizer, tmp_path):
    finding = Finding("x", "drift", "critical", EVIL, EVIL, EVIL)
    cause = Cause(EVIL, "not allowed", EVIL)
    audit = dataclasses.replace(healthy.audit, findings=(finding,))
    hostile = dataclasses.replace(healthy, audit=audit, causes=(cause,), proposal=None, notes=(EVIL,))
    page, _ = write_preflight(tmp_path / "out", hostile, tokenizer)
    assert "<script>alert(1)" not in page.read_text(encoding="utf-8")
    text = printed(hostile)
    assert "\x1b" not in text and text.startswith("Do not start: ")


def test_words_for_engines_causes_and_repeats(healthy):
    assert engine_of(healthy) == "the embedded engine in float32"
    assert "sampled at temperature 1 from" in scope(healthy)
    assert repeat_words(Repeat("twice", 4, 4, 0.0, None)) == "all 4 responses are the same, to the last bit"
    assert repeat_words(Repeat("twice", 4, 3, 0.5, 7)).startswith("3 of 4 responses are the same, the first parts at")
    assert cause_words(Cause("head", "not set", "it is float32")) == "head: not set: it is float32"
    batch = next(cause for cause in healthy.causes if cause.name == "batch size")
    supposed = dataclasses.replace(batch, name="chat template", said="sent as text", supposed=True)
    assert cause_words(supposed) == "chat template: not this run's: sent as text"
    assert cause_row(supposed)[2:4] == ("–", "–")
    assert cause_words(batch).startswith("batch size: measured: ") and "are left; 8 responses one at a time" in (
        cause_words(batch)
    )


def test_a_folder_that_cannot_be_written_is_said(healthy, tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match="give a folder with --out"):
        write_preflight(tmp_path / "file", healthy, tokenizer)

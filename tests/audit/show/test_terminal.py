"""What a terminal shows: the verdict first, nothing from the log acts on the terminal."""

import dataclasses
import io
import re

import numpy as np
from rich.console import Console

from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.verdict import interval, shares, verdict_of
from holdfast.audit.measure.estimate import Estimate
from holdfast.audit.show.terminal import print_audit
from holdfast.audit.simulate import FAULTS


def shown(audit, missing=()):
    console = Console(width=100, color_system=None, file=io.StringIO())
    print_audit(console, audit, missing)
    return console.file.getvalue()


def finding(**changes):
    fields = {"name": "made", "kind": "drift", "severity": "warning", "headline": "7 tokens drift", "meaning": "m"}
    return Finding(**(fields | {"fix": "mend it"} | changes))


def test_a_clean_run(audit_of, small_run):
    audit = dataclasses.replace(audit_of(small_run()), findings=())
    text = shown(audit, ("a certificate: no rewards",))
    assert text.startswith("Nothing wrong was found.\nRead: 72 sequences of 3 steps")
    assert "k3 = e^r" in text
    assert "a certificate: no rewards" in text
    assert verdict_of(audit).tone == "clean"


def test_bounds_are_said_as_bounds(audit_of, small_run, top_k_of):
    audit = audit_of(top_k_of(small_run(1, age=2, update=0.1)))
    text = shown(audit)
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    for name, title in (
        ("kl_lower", "KL, at least"), ("tv_lower", "TV (0 to 1), at least"), ("tv_upper", "TV (0 to 1), at most"),
    ):  # fmt: skip
        assert interval(audit.statistics.mean(name)) in lines[title]
    assert "exact KL" not in text
    assert "What the engine's likeliest tokens prove of the sequences" in text
    assert lines["at every sampled token"].split()[-5:] == ["proven", "inside", "proven", "outside", "undecided"]
    for region, title in zip(audit.statistics.regions(), ("KL ≤ 0.05", "TV ≤ 0.158"), strict=True):
        cells = [shares(share) for share in (region.inside, region.outside, region.undecided)]
        assert re.fullmatch(f"{title} +" + " +".join(map(re.escape, cells)) + " *", lines[title])
    assert "likeliest tokens" not in shown(audit_of(small_run()))


def test_a_data_error_comes_first_and_says_what_is_withheld(audit_of, small_run):
    fault = FAULTS["nan"]
    audit = audit_of(fault.apply(small_run(), fault.strengths[-1], np.random.default_rng(0)))
    audit = dataclasses.replace(audit, withheld=(finding(name="shaky"),))
    text = shown(audit)
    assert text.startswith("The log itself is wrong: ")
    assert "1 finding about drift is withheld." in " ".join(text.split())
    assert "finding shaky: withheld" in text


def test_the_order_of_tones(audit_of, small_run):
    plain = audit_of(small_run())
    grave = dataclasses.replace(plain, findings=(finding(severity="critical"), finding()))
    assert str(verdict_of(grave)).startswith("This run is in trouble: 7 tokens drift. 1 other finding below.")
    mild = dataclasses.replace(plain, findings=(finding(),))
    assert str(verdict_of(mild)).startswith("Not broken, but worth a look: 7 tokens drift.")
    note = dataclasses.replace(plain, findings=(finding(severity="info"),))
    assert verdict_of(note).tone == "clean"


def test_nothing_from_the_log_acts_on_the_terminal(audit_of, small_run):
    evil = finding(headline="[bold]x[/bold] \x1b[31mred \u202eback", fix="[link=file:///]y", settings={"verl": "a\x1b"})
    audit = dataclasses.replace(audit_of(small_run()), findings=(evil,), skipped={"[red]": ("\x1b]0;t\x07",)})
    text = shown(audit, ("[blink]z",))
    assert "[bold]x[/bold] \\x1b[31mred \\u202eback" in " ".join(text.split())
    assert "\x1b" not in text and "\u202e" not in text and "\x07" not in text
    assert "[link=file:///]y" in text and "check [red]" in text and "[blink]z" in text


def test_an_interval_that_is_none_is_not_shown():
    assert interval(Estimate(0.5, float("-inf"), float("inf"))) == "0.5"

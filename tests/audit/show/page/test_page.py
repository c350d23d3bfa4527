"""The page of an audit: complete, honest about gaps, and deaf to what hostile text in a log would have it do."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from holdfast.audit.judge.advice import SampleAdvice, advise_on
from holdfast.audit.judge.finding import Finding, Where
from holdfast.audit.judge.verdict import region_row
from holdfast.audit.show.page import Entry, audit_page, write_index
from holdfast.audit.simulate import FAULTS
from holdfast.report.charts.scales import number
from holdfast.types import Rollout

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u202e"


class Tree(HTMLParser):
    """Elements and what they say."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.within = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.within.append(tag)

    def handle_endtag(self, tag):
        while self.within and self.within.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.within):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def finding(**changes):
    fields = {"name": "made", "kind": "drift", "severity": "warning", "headline": "7 tokens drift", "meaning": "m"}
    return Finding(**(fields | {"fix": "mend it"} | changes))


def page_of(audit, advice=None, worst=None):
    given = audit.sample.worst() if worst is None else worst
    return audit_page(audit, advice or SampleAdvice(), title="A run", worst=given)


@pytest.fixture(scope="module")
def healthy(audit_of, small_run):
    return audit_of(small_run(age=1, texts=True))


@pytest.fixture(scope="module")
def full(healthy):
    return page_of(healthy, advise_on(healthy))


def test_everything_is_there_and_small(full):
    seen = Tree(full)
    for heading in (
        "Findings", "Drift over steps", "Drift by depth", "How large single tokens' drift is", "Drift by environment",
        "Acceptance by length", "What each threshold keeps", "The error that each threshold leaves", "Certificate",
        "What to set, and what it guarantees", "What each published mask would have rejected", "The worst sequences",
    ):  # fmt: skip
        assert heading in seen.text
    assert len(full.encode()) < 1_000_000
    assert sum("data-tip" in attrs for _, attrs in seen.tags) > 200


def test_bounds_have_a_tile_a_line_and_a_table(audit_of, small_run, top_k_of, full):
    audit = audit_of(top_k_of(small_run(age=1)))
    seen = Tree(page_of(audit, advise_on(audit))).text
    low, high = (number(audit.statistics.mean(name).value, 2) for name in ("tv_lower", "tv_upper"))
    assert f"Total variation {low} to {high} a token, by the engine's likeliest tokens" in seen
    assert "What the engine's likeliest tokens prove Shares of the sequences" in seen
    for region in audit.statistics.regions():
        assert " ".join(region_row(region)).replace("\xa0", " ") in seen.replace("\xa0", " ")
    for text in (
        "KL, at least",
        "TV ≤ 0.158, proven",
        "TV ≤ 0.158, possible",
        "KL is at least this",
        "total variation is at most this",
    ):
        assert text in seen
        assert text not in Tree(full).text
    assert "Total variation" not in Tree(full).text and "Every bound without a mask" in seen


def test_acceptance_by_length_lies_between_what_is_proven_and_what_is_possible(audit_of, small_run, top_k_of):
    close = [
        dataclasses.replace(r, tv_lower=tuple(0.9 * tv for tv in r.tv_upper))
        for r in top_k_of(small_run(2, age=2, update=0.1))
    ]
    audit = audit_of(close)
    longest = max(audit.statistics.by_length.sums)
    inside, outside = (
        audit.statistics.by_length.mean(name, "bounded", longest).value for name in ("tv_inside", "tv_outside")
    )
    assert 0 < outside < outside + inside < 1
    seen = Tree(page_of(audit)).text
    for name, share in (("proven", inside), ("possible", 1 - outside)):
        told = re.search(rf"TV ≤ 0\.158, {name}: \S+ at \d+, (\S+) at {1 << (longest - 1)},", seen)
        assert float(told[1]) == pytest.approx(100 * share, abs=0.06)


def test_the_page_loads_nothing(full):
    policy = next(a["content"] for t, a in Tree(full).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    loads = [v for _, attrs in Tree(full).tags for k, v in attrs.items() if k in ("src", "href", "srcset")]
    assert all(v.startswith(("#", "data:")) for v in loads)
    assert not re.search(r"@import|url\((?!data:)", full)


def test_links_lead_to_sequences_that_are_shown(healthy, full):
    ids = {a["id"] for _, a in Tree(full).tags if "id" in a}
    links = [a["href"][1:] for t, a in Tree(full).tags if t == "a" and a["href"].startswith("#")]
    assert links and set(links) <= ids
    shown = healthy.sample.worst()[0][0]
    absent = next(n for n in range(72) if n not in {name for name, _ in healthy.sample.worst()})
    place = Where(steps=(3,), sequences=(shown, absent), positions=((shown, 4),))
    text = page_of(dataclasses.replace(healthy, findings=(finding(where=place),)))
    assert f'<a href="#sequence-{shown}">{shown}</a>, {absent}' in text
    assert f'token 5 of <a href="#sequence-{shown}">' in text


def test_findings_come_with_settings_to_copy(healthy):
    found = finding(settings={"verl": "rollout_rs=seq_max_k2\nthreshold=0.05"}, evidence={"tokens": 12345})
    text = page_of(dataclasses.replace(healthy, findings=(found,)))
    assert "<code>rollout_rs=seq_max_k2\nthreshold=0.05</code></pre><button" in text
    assert "12,345" in text and "7 tokens drift" in text and "mend it" in text


def test_a_data_error_withholds_and_says_so(audit_of, small_run):
    fault = FAULTS["nan"]
    audit = audit_of(fault.apply(small_run(), fault.strengths[-1], np.random.default_rng(0)))
    audit = dataclasses.replace(audit, withheld=(finding(name="shaky"),))
    text = Tree(page_of(audit, advise_on(audit))).text
    assert "The log itself is wrong" in text
    assert "Withheld: shaky. It rests on log-probabilities" in text
    assert "Not given: thresholds, bounds and certificates" in text
    assert "What each threshold keeps" not in text


def test_what_could_not_be_known(audit_of):
    audit = audit_of([Rollout((1,), (5, 6), (-0.5, -1.0))])
    audit.reading.reject("some.jsonl", 7, "lengths differ", "3 and 4")
    audit.reading.note("the dump has no steps")
    text = Tree(page_of(audit)).text
    assert "Drift could not be measured" in text
    assert "What could not be known" in text
    assert "drift_with_depth trainer_logprobs" in text
    assert "The dump has no steps" in text
    assert "lengths differ 1" in text and "lengths differ: 3 and 4" in text
    assert "--model DIR" in text


def test_an_empty_response_and_no_sequences(audit_of):
    audit = audit_of([Rollout((1,), (), (), ()), Rollout((2,), (3,), (-1.0,), (-1.0,))])
    assert "The worst sequences" in page_of(audit)
    assert "The log holds no sequence" in page_of(audit, worst=[])


@pytest.mark.slow
def test_hostile_text_stays_text(audit_of, small_run):
    runs = [
        dataclasses.replace(
            r, environment=EVIL, finish_reason=EVIL, mask_reason=EVIL, prompt_text=EVIL, extra={"answer": EVIL},
            token_texts=(EVIL,) * len(r.response_ids), trust_mask=(False,) * len(r.response_ids),
        )
        for r in small_run()
    ] + small_run(1)  # fmt: skip
    audit = audit_of(runs, EVIL + ".parquet")
    audit.reading.reject(EVIL, 1, EVIL, EVIL)
    audit.reading.note(EVIL)
    evil = finding(headline=EVIL, meaning=EVIL, fix=EVIL, evidence={EVIL: EVIL}, settings={EVIL: EVIL})
    audit = dataclasses.replace(audit, findings=(evil,), skipped={EVIL: (EVIL,)}, asked={EVIL: EVIL})
    document = audit_page(audit, advise_on(audit), title=EVIL, worst=audit.sample.worst())
    seen = Tree(document)
    assert [t for t, _ in seen.tags].count("script") == 1
    assert "img" not in [t for t, _ in seen.tags]
    assert not any(name.startswith("on") for _, attrs in seen.tags for name in attrs)
    assert "\u202e" not in document
    assert seen.text.count("<script>alert(1)</script>") > 20


def test_the_index_of_the_demo(tmp_path):
    entries = [
        Entry("healthy", "nothing", "clean", "Nothing wrong", "healthy/report.html", True),
        Entry("bad<", "a fault", "critical", "It broke", "a&b/report.html", False),
    ]
    text = write_index(tmp_path / "index.html", entries).read_text()
    assert "In 1 of them" in text
    assert 'href="a&amp;b/report.html">bad&lt;</a>' in text

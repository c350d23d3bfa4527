"""report.json: its keys, finite numbers, and text that UTF-8 can hold."""

import json
import math

import pytest

from holdfast.audit.judge.advice import SampleAdvice, advise_on
from holdfast.audit.show.jsonout import SCHEMA, audit_dict, plain, write_json
from holdfast.errors import DataError

KEYS = {
    "schema", "holdfast", "verdict", "sources", "facts", "findings", "withheld", "unjudged", "skipped", "bad_records",
    "notes", "statistics", "advice", "course", "framework", "more", "attribution", "writers",
}  # fmt: skip


def test_the_document(tmp_path, audit_of, small_run):
    audit = audit_of(small_run())
    path = write_json(tmp_path / "report.json", audit_dict(audit, advise_on(audit)))
    document = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert set(document) == KEYS
    assert document["schema"] == SCHEMA == "holdfast.audit/1"
    assert document["facts"]["sequences"] == 72
    assert sum(row["sequences"] for row in document["statistics"]["by_step"]) == 72
    assert set(document["statistics"]["estimators"]["k3"]) == {"value", "low", "high"}
    assert [row["from"] for row in document["statistics"]["by_position"]][:4] == [0, 1, 2, 4]
    assert document["advice"]["certificate"]["units"] == 18


def test_what_bounds_prove_is_told_as_a_whole_and_in_every_row(audit_of, small_run, top_k_of):
    document = audit_dict(audit_of(top_k_of(small_run(1, age=2, update=0.1))), SampleAdvice())["statistics"]
    kl, tv = document["regions"]
    assert (kl["divergence"], kl["threshold"], tv["divergence"]) == ("kl", 0.05, "tv")
    shares = [tv[name]["value"] for name in ("inside", "outside", "undecided")]
    assert sum(shares) == pytest.approx(1) and min(shares[0], shares[2]) > 0.1
    assert kl["inside"]["value"] == 0
    rows = document["by_length"]
    for name in ("inside", "outside", "undecided"):
        whole = sum(row["sequences"] * row[f"tv_{name}"]["value"] for row in rows) / 72
        assert whole == pytest.approx(tv[name]["value"])
    at_least, at_most = (document["estimators"][name]["value"] for name in ("tv_lower", "tv_upper"))
    assert at_most == pytest.approx(4 * at_least, rel=1e-6)
    plain_log = audit_dict(audit_of(small_run()), SampleAdvice())["statistics"]
    assert plain_log["regions"] == [] and plain_log["by_step"][0]["tv_inside"] is None


def test_an_audit_that_measured_nothing_is_written_too(audit_of, small_run):
    lone = [r.__class__(r.prompt_ids, r.response_ids) for r in small_run()[:3]]
    document = audit_dict(audit_of(lone), SampleAdvice())
    assert document["statistics"]["estimators"]["k1"] is None
    assert document["statistics"]["abs_log_largest"] is None
    json.dumps(document, allow_nan=False)


def test_what_json_cannot_hold_is_null_or_spelled_out():
    assert plain({"a": math.inf, "b": [math.nan, 1.5], 3: {"x"}}) == {"a": None, "b": [None, 1.5], "3": ["x"]}
    assert plain("cut \ud800 off") == "cut \\ud800 off"


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match="cannot write"):
        write_json(tmp_path / "none" / "report.json", {})


def test_the_tails_are_told(audit_of, small_run):
    tails = audit_dict(audit_of(small_run()), SampleAdvice())["statistics"]["tails"]
    assert set(tails) == {"pareto_k", "log_ratio_quantiles", "rates", "signed_skew"}
    assert set(tails["pareto_k"]["tokens"]) == {"value", "low", "high"}
    quantiles = tails["log_ratio_quantiles"]
    assert quantiles["above"]["0.99"] > 0 > quantiles["below"]["0.99"]
    assert tails["rates"]["beyond 20"]["high"] > 0
    assert set(tails["signed_skew"]) == {"positive", "negative"}

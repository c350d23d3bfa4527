"""Both pages follow from results alone, and say what those say."""

import re
from pathlib import Path

import pytest

from holdfast.study.evidence import check_evidence, write_charts, write_evidence
from holdfast.study.judge import account, claim_verdict, judge, outcome_table
from holdfast.study.markdown import markdown_page
from holdfast.study.page import study_page
from small_study import STUDY

ROOT = Path(__file__).parents[2]
LOW, HIGH = [0.1, 0.0, 0.2, 0.1, 0.0, 0.1], [0.8, 0.7, 0.9, 0.6, 0.8, 0.7]
MIXED = [0.9, 0.0, 0.2, 0.1, 0.0, 0.1]


def test_every_comparison_in_every_cell_it_names(make_study, results_of):
    study = make_study(comparison=[{"second": "a", "claim": True, "at": {"lag": [2]}}, {"first": ["a"], "second": "b"}])
    judged = judge(study, results_of(study, {"a": LOW, "b": HIGH}))
    assert [(row.cell["lag"], row.first, row.second, row.claim) for row in judged] == [
        (0, "a", "b", False),
        (2, "b", "a", True),
        (2, "a", "b", False),
    ]
    assert {row.verdict.state for row in judged if row.first == "a"} == {"second"}


def test_a_claim_may_name_another_number(make_study, results_of):
    """Entropy is higher in `b`, although the metric wants the lowest reward."""
    compared = [{"first": ["b"], "second": "a", "claim": True, "number": "entropy:last"}]
    metric = STUDY["metric"] | {"lowest": True}
    study = make_study(comparison=compared, metric=metric, factor=[])
    results = results_of(study, {"a": LOW, "b": HIGH})
    for run in results["runs"]:
        run["also"] = {"entropy:last": 0.4 if run["configuration"] == "b" else 0.25}
    (row,) = judge(study, results)
    assert row.sentence == "entropy, at the end: b is above a by .15 (.15 to .15) on 6 seeds."
    assert claim_verdict([row]) == "The claim holds in the comparison that it names."
    assert f"- **Claim.** {row.sentence}" in markdown_page(study, results, "small")


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ({"a": LOW, "b": HIGH}, "The claim holds in all 2 comparisons that it names."),
        ({"a": HIGH, "b": LOW}, "The claim is refuted. Of the comparisons that it names, 2 found the opposite."),
        ({"a": LOW, "b": MIXED}, "The claim is not shown. Of the comparisons that it names, 2 did not separate"),
        ({"a": LOW[:3], "b": HIGH[:3]}, "Not judged: too few seeds have finished."),
    ],
)
def test_what_becomes_of_the_claim(make_study, results_of, ends, said):
    study = make_study()
    assert claim_verdict(judge(study, results_of(study, ends))).startswith(said)


def test_a_claim_may_hold_in_part(make_study, results_of):
    study = make_study()
    results = results_of(study, {"a": LOW, "b": HIGH})
    for run in results["runs"]:
        if run["cell"]["lag"] == 2 and run["configuration"] == "a":
            run["value"] = 1.0
    text = claim_verdict(judge(study, results))
    assert text == "The claim holds in 1 of 2 comparisons. Of the others, 1 found the opposite."


def test_the_table_has_every_seed_and_marks_what_broke(make_study, results_of):
    study = make_study()
    results = results_of(study, {"a": LOW, "b": HIGH})
    broken = next(run for run in results["runs"] if run["configuration"] == "b" and run["cell"]["lag"] == 0)
    broken |= {"state": "failed", "value": 0.0, "collapsed": True, "error": "a <nan> | norm", "failed_step": 4}
    headers, rows = outcome_table(study, results, {"lag": 0})
    assert headers[:4] == ["configuration", "every seed", "mean (95 % interval)", "start"]
    assert headers[4:] == ["collapsed", "entropy, at the end"]
    assert [row[0] for row in rows] == ["b", "a"], "the best first"
    assert rows[0][1] == ".00* .70 .90 .60 .80 .70" and rows[0][4] == "1 of 6" and rows[1][4] == "6 of 6"
    assert (
        rows[1][1] == ".10 .00 .20 .10 .00 .10"
        and rows[1][2].startswith(".08 (")
        and rows[1][3] == ".50"
        and rows[1][5] == ".25"
    )
    assert "1 broke and count as the study says" in account(results)
    page = markdown_page(study, results, "small")
    assert "A star marks a run that broke, which counts as 0." in page
    assert "- b, lag 0, seed 2, step 4: a <nan> | norm" in page
    assert "&lt;nan&gt;" in study_page(study, results, "small") and "<nan>" not in study_page(study, results, "small")


def test_both_pages_show_the_settings_tried_and_the_runs_dropped(make_study, results_of):
    configuration = [
        {"name": "a", "set": {"objective.preset": "reinforce"}},
        {"name": "b", "set": {"objective.preset": "trm_max"}, "tune": {"objective.delta": [0.05, 0.3]}},
    ]
    study = make_study(configuration=configuration, seeds={"tuning": [0], "reporting": [2, 3, 4, 5, 6, 7]})
    results = results_of(study, {"a": LOW, "b": HIGH}, chosen={"b": {"objective.delta": 0.3}})
    for delta, value in ((0.05, 0.2), (0.3, 0.4)):
        tried = {"for": "tuning", "configuration": "b", "seed": 0, "settings": {"objective.delta": delta}}
        results["runs"].append(results["runs"][0] | tried | {"value": value})
    results["dropped"] = [{"run": "c_seed=2-1234abcd", "state": "finished", "value": 0.9}]
    for page in (markdown_page(study, results, "small"), study_page(study, results, "small")):
        words = re.sub(r"<[^>]*>", " ", page)
        for said in ("objective.delta = 0.3", "chosen", "c_seed=2-1234abcd: finished, .90", "b beats a by .67"):
            assert said in words, said
    assert "| b | objective.delta = 0.3 | .40 | .40 | chosen |" in markdown_page(study, results, "small")


def test_results_of_no_finished_run_make_pages_too(make_study, results_of):
    study = make_study()
    results = results_of(study, {})
    assert "Not judged" in markdown_page(study, results, "small")
    assert "Not judged" in study_page(study, results, "small")


@pytest.fixture
def evidence(tmp_path, make_study, results_of):
    """A folder of evidence that follows, and the folder of its study: a run's file with the base."""
    import tomli_w

    study = make_study()
    (tmp_path / "studies").mkdir()
    values = study.model_dump(mode="json", exclude_none=True)
    (tmp_path / "studies" / "small.toml").write_text(tomli_w.dumps(values))
    write_evidence(tmp_path / "evidence", "small", study, results_of(study, {"a": LOW, "b": HIGH}))
    return tmp_path


def test_a_page_that_follows_is_no_finding(evidence):
    assert check_evidence(evidence / "evidence", evidence / "studies") == []
    page = write_charts(evidence / "report.html", evidence / "evidence" / "small.json").read_text()
    assert "b beats a by .67" in page and "Where each breaks" in page


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("evidence/small.md", "b beats a by .67", "b beats a by .77", "small.md does not follow from small.json"),
        ("evidence/small.json", '"value": 0.8, "start"', '"value": 0.9, "start"', "small.md does not follow"),
        ("studies/small.toml", "b ends higher than a", "b ends lower than a", "made with another small.toml"),
    ],
)
def test_what_does_not_follow_is_found(evidence, file, old, new, said):
    path = evidence / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    (found,) = check_evidence(evidence / "evidence", evidence / "studies")
    assert said in found


def test_missing_and_orphaned_files_are_found(evidence):
    (evidence / "evidence" / "small.md").rename(evidence / "evidence" / "other.md")
    (evidence / "studies" / "small.toml").unlink()
    missing, no_study, orphan = check_evidence(evidence / "evidence", evidence / "studies")
    assert "small.md is missing" in missing and "has no study" in no_study and "other.md has no results" in orphan


def test_every_committed_page_follows_from_its_results():
    assert check_evidence(ROOT / "docs" / "evidence", ROOT / "studies") == []

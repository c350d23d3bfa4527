"""Figures are made of the evidence by the study's own words; what leads nowhere or is contradicted is refused."""

import json

import pytest

from advice.conftest import ENDS
from holdfast.advice.lines import read_lines
from holdfast.advice.resolve import Evidence, resolve
from holdfast.advice.traits import key_of
from holdfast.objectives.presets import preset
from holdfast.study.judge import judge
from holdfast.study.results import read_results


def resolved(checkout, **changes):
    if changes:
        checkout.lines(change=None, does=None, **changes)
    places = checkout.places
    return resolve(read_lines(places.lines), Evidence(places.evidence, places.studies))


def one(checkout, reference):
    measured, problems = resolved(checkout, evidence=[{"study": "small", **reference}])
    return measured.figures["rollout"], problems


def test_the_sentence_is_the_studys_own(checkout):
    measured, problems = resolved(checkout)
    (figure,) = measured.figures["rollout"]
    rows = judge(*read_results(checkout.places.evidence / "small.json"))
    assert not problems and figure.support == "shown"
    assert figure.text in [row.sentence for row in rows] and figure.text.startswith("b beats a by .20 (")
    assert (figure.cell, figure.setting.lag, figure.setting.updates, figure.setting.tokens) == ("lag 2", 2, 1, 8)
    assert figure.setting.kl == 0.02


def test_every_cell_where_none_is_named(checkout):
    figures, problems = one(checkout, {"ahead": "b", "behind": "a"})
    assert [figure.setting.lag for figure in figures] == [0, 2] and not problems
    figures, _ = one(checkout, {"ahead": "b", "behind": "a", "at": {"lag": [2, 0]}})
    assert len(figures) == 2


def test_a_line_that_the_evidence_contradicts_is_refused(checkout):
    checkout.results({"a": ENDS["b"], "b": ENDS["a"]})
    _, problems = resolved(checkout)
    assert len(problems) == 1
    assert problems[0].startswith("line 'rollout' says 'Take b', and small (int8 engine, 2 updates behind, 1 optimiser")
    assert "says otherwise: a beats b by .20" in problems[0]
    assert problems[0].endswith("Reword the line, or take it out")


@pytest.mark.parametrize(
    ("ends", "support"),
    [
        ({"a": ENDS["a"], "b": [0.4, 0.6, 0.45, 0.55, 0.6, 0.42]}, "not separated"),
        ({"a": ENDS["a"][:4], "b": ENDS["b"][:4]}, "too few seeds"),
    ],
)
def test_a_line_is_only_as_strong_as_its_evidence(checkout, ends, support):
    checkout.results(ends)
    measured, problems = resolved(checkout)
    assert [figure.support for figure in measured.figures["rollout"]] == [support] and not problems


def test_alike_is_contradicted_by_a_separation(checkout):
    _, problems = one(checkout, {"alike": ["b", "a"], "at": {"lag": 2}})
    assert "says otherwise: b beats a by" in problems[0]
    figures, problems = one(checkout, {"alike": ["a", "b"], "number": "entropy:last"})
    assert [figure.support for figure in figures] == ["alike", "alike"] and not problems
    assert figures[0].text.startswith("entropy, at the end: b and a are not separated")


def test_a_pair_is_said_whatever_it_shows(checkout):
    figures, problems = one(checkout, {"pair": ["a", "b"], "at": {"lag": 0}})
    assert [figure.support for figure in figures] == ["said"] and not problems


@pytest.mark.parametrize(
    ("limits", "support"),
    [
        ({}, "said"),
        ({"least": 0.6}, "alike"),
        ({"most": 0.8}, "alike"),
        ({"least": 0.6, "most": 0.65}, "contradicted"),
        ({"least": 0.75}, "contradicted"),
        ({"least": 0.7}, "not separated"),
    ],
)
def test_a_value_keeps_to_its_limits(checkout, limits, support):
    figures, problems = one(checkout, {"value": "b", "at": {"lag": 2}, **limits})
    assert figures[0].text.startswith("held-out reward, at the end: b .70 (") and figures[0].text.endswith(
        "on 6 seeds."
    )
    assert figures[0].support == support and bool(problems) == (support == "contradicted")


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ({"study": "smal", "ahead": "b", "behind": "a"}, "no study 'smal'"),
        ({"ahead": "bb", "behind": "a"}, "small has no configuration 'bb'; did you mean"),
        ({"ahead": "b", "behind": "a", "number": "entropy:lst"}, "no number 'entropy:lst'; did you mean entropy:last"),
        ({"ahead": "b", "behind": "a", "at": {"lag": 3}}, "no cell lag = 3"),
        ({"ahead": "b", "behind": "a", "number": "kl_exact_mean:highest"}, "names no comparison of 'b' and 'a' in kl_"),
        ({"signal": "rollout_k3"}, "no signal 'rollout_k3'; did you mean rollout_k3_mean"),
        ({"signal": "grad_norm", "published": True}, "no threshold is published"),
        ({"signal": "grad_norm"}, "is no diagnosis"),
    ],
)
def test_a_reference_that_leads_nowhere_is_named(checkout, reference, said):
    _, problems = one(checkout, reference)
    assert len(problems) == 1 and problems[0].startswith("line 'rollout': ") and said in problems[0]


def test_what_is_written_and_not_run_is_told_from_what_is_not_there(checkout):
    measured, problems = resolved(checkout)
    assert [figure.support for figure in measured.figures["later"]] == ["not run"] and not problems
    path = checkout.places.studies / "small.toml"
    path.write_text(path.read_text().replace("values = [\n    0,\n    2,\n]", "values = [\n    0,\n    2,\n    9,\n]"))
    figures, problems = one(checkout, {"ahead": "b", "behind": "a", "at": {"lag": 9}})
    assert [figure.support for figure in figures] == ["not run"] and not problems
    figures, problems = one(checkout, {"ahead": "b", "behind": "a", "at": {"lag": [2, 9]}})
    assert [figure.setting.lag for figure in figures] == [2] and not problems


def test_what_was_chosen_on_other_seeds_is_said(checkout):
    tuned = {"name": "a", "set": {"objective.preset": "trm_max"}, "tune": {"objective.delta": [0.1, 0.4]}}
    given = [tuned, {"name": "b", "set": {"objective": {"preset": "ppo"}}}]
    seeds = {"tuning": [0], "reporting": [2, 3, 4, 5, 6, 7]}
    checkout.results(ENDS, configuration=given, seeds=seeds, chosen={"a": {"objective.delta": 0.4}})
    figures, problems = one(checkout, {"ahead": "b", "behind": "a", "at": {"lag": 2}})
    assert not problems and figures[0].text.endswith("Chosen on other seeds: a at objective.delta = 0.4.")
    measured, _ = resolved(checkout)
    assert [found.objective for found in measured.outcomes[::2]] == [key_of(preset("trm_max", delta=0.4))] * 2


def test_results_that_cannot_be_read_are_a_problem(checkout):
    (checkout.places.evidence / "other.json").write_text("{}")
    _, problems = resolved(checkout)
    assert len(problems) == 1 and "other.json holds no study" in problems[0]


def test_only_what_both_have_in_common_is_said_of_their_setting(checkout):
    """Other learning rates are no common one, and entries are no part of a setting, so that they are said beside it."""
    rates = [
        {"name": "a", "set": {"optimizer.learning_rate": 0.1}},
        {"name": "b", "set": {"engine.precision": "bfloat16"}},
    ]
    factor = [{"name": "entries", "key": "task.entries", "values": [1, 2]}]
    checkout.results(ENDS, configuration=rates, factor=factor)
    figures, problems = one(checkout, {"ahead": "b", "behind": "a", "at": {"entries": 2}})
    assert not problems and figures[0].where == "in step, 1 optimiser step a rollout batch, up to 8 tokens, entries 2"
    measured, _ = resolved(checkout)
    assert [found.setting.rate for found in measured.outcomes] == [0.1, 2e-4, 0.1, 2e-4]
    assert [found.beside for found in measured.outcomes] == ["entries 1", "entries 1", "entries 2", "entries 2"]


def test_outcomes_are_those_of_every_setting(checkout):
    measured, _ = resolved(checkout)
    assert [(found.configuration, found.setting.lag) for found in measured.outcomes] == [
        ("a", 0), ("b", 0), ("a", 2), ("b", 2),
    ]  # fmt: skip
    found = measured.outcomes[3]
    assert found.mean == pytest.approx(0.7017, abs=1e-4) and found.start == ".60" and found.text.startswith(".70 (")
    assert found.objective == key_of(preset("ppo", denominator="rollout"))


@pytest.mark.parametrize(
    ("limits", "support"),
    [({}, "said"), ({"most": 0.5}, "contradicted"), ({"least": 0.4}, "shown"), ({"least": 0.6}, "contradicted")],
)
def test_an_alarm_is_counted_by_the_diagnosis(checkout, limits, support):
    """The signal spoke before the fall of the one collapsing run, and in one of the two runs that held."""

    def run(seed, collapsed, *courses):
        row = {"study": "small", "configuration": "a", "cell": {}, "seed": seed, "collapsed": collapsed}
        return row | {"fell": 6 if collapsed else None, "signals": {"rollout_k3_mean": list(courses)}}

    runs = [run(1, True, 0.0, 0.1, 0.1), run(2, False, 0.0005), run(3, False, 0.01)]
    (checkout.places.evidence / "diagnosis.json").write_text(json.dumps({"diagnosed": runs}))
    figures, problems = one(checkout, {"signal": "rollout_k3_mean", "published": True, **limits})
    assert figures[0].text == (
        "k3, mean of the step, above 0.001: before the fall in 1 of 1 collapsing runs, and in 1 of 2 that held."
    )
    assert figures[0].support == support and bool(problems) == (support == "contradicted")

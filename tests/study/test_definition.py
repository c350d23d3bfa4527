"""A study's file says everything before a run is started, and says it once."""

import pytest

from holdfast.errors import ConfigError
from holdfast.study.definition import find_study, parse_study, read_study
from small_study import STUDY


def refused(**changes):
    with pytest.raises(ConfigError) as caught:
        parse_study(STUDY | changes, "study.toml")
    return str(caught.value)


def test_a_setting_is_never_chosen_on_the_seeds_that_report_it():
    text = refused(seeds={"tuning": [0, 3], "reporting": [2, 3]})
    assert "[3]" in text and "both for tuning and for reporting" in text
    assert "each seed once" in refused(seeds={"reporting": [2, 2]})
    assert "none below 0" in refused(seeds={"reporting": [-1]})


def test_tuning_needs_seeds_of_its_own():
    text = refused(configuration=[{"name": "a", "tune": {"objective.delta": [0.1, 0.2]}}, {"name": "b"}])
    assert "'a' is tuned, but seeds.tuning is empty" in text and "[0, 1]" in text


def test_something_must_be_able_to_refute_the_claim():
    assert "no result could refute the claim" in refused(comparison=[{"first": ["b"], "second": "a"}])
    assert "no result could refute the claim" in refused(comparison=[])


@pytest.mark.parametrize(
    ("comparison", "said"),
    [
        ({"first": ["bb"], "second": "a", "claim": True}, "no configuration 'bb'; did you mean"),
        (
            {"second": "a", "claim": True, "number": "entropy:lst"},
            "no number 'entropy:lst' in also; did you mean entropy:",
        ),
        ({"first": ["a"], "second": "a", "claim": True}, "compared with itself"),
        ({"second": "a", "claim": True, "at": {"lags": [0]}}, "no factor 'lags'; did you mean lag?"),
        ({"second": "a", "claim": True, "at": {"lag": [0, 3]}}, "factor 'lag' has no value 3 (allowed: [0, 2])"),
    ],
)
def test_a_comparison_names_what_is_there(comparison, said):
    assert said in refused(comparison=[comparison])


def test_unknown_and_missing_keys_are_named():
    assert "unknown key 'metrics'; did you mean metric?" in refused(metrics={})
    assert "unknown key 'metric.keys'; did you mean key?" in refused(metric=STUDY["metric"] | {"keys": "x"})
    assert "metric.failed is required" in refused(metric={"key": "eval_reward", "title": "reward"})
    assert "configuration names ['a', 'a']: each once" in refused(configuration=[{"name": "a"}, {"name": "a"}])


def test_the_hash_is_that_of_everything_it_says(make_study):
    assert make_study().hash == make_study().hash
    others = [
        make_study(claim="b ends lower than a."),
        make_study(seeds={"reporting": [2, 3]}),
        make_study(base=STUDY["base"] | {"steps": 3}),
        make_study(metric=STUDY["metric"] | {"of": "mean"}),
    ]
    assert len({make_study().hash, *(study.hash for study in others)}) == 5


def test_a_key_that_came_later_leaves_the_hash_of_older_studies(make_study):
    """A default that is written down is the study that does not mention it."""
    assert make_study().hash == make_study(comparison=[STUDY["comparison"][0] | {"number": "", "at": {}}]).hash
    assert make_study().hash != make_study(comparison=[STUDY["comparison"][0] | {"number": "entropy:last"}]).hash


def test_a_base_is_a_table_or_the_file_of_a_run(tmp_path):
    (tmp_path / "run.toml").write_text("steps = 7\n[engine]\nlag = 1\n")
    text = """
title = "t"
claim = "c"
refuted_by = "r"
base = "run.toml"
seeds = {reporting = [1]}
metric = {key = "eval_reward", title = "reward", failed = 0.0}
configuration = [{name = "a"}, {name = "b", set = {"engine.lag" = 2}}]
comparison = [{first = ["b"], second = "a", claim = true}]
"""
    (tmp_path / "study.toml").write_text(text)
    assert read_study(tmp_path / "study.toml").base == {"steps": 7, "engine": {"lag": 1}}
    with pytest.raises(ConfigError, match=r"no file .*gone\.toml"):
        read_study(tmp_path / "gone.toml")
    (tmp_path / "broken.toml").write_text("title = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_study(tmp_path / "broken.toml")


def test_a_study_is_found_by_name(tmp_path):
    (tmp_path / "staleness.toml").write_text("")
    assert find_study("staleness", tmp_path) == tmp_path / "staleness.toml"
    assert str(find_study("elsewhere/mine.toml", tmp_path)) == "elsewhere/mine.toml"
    with pytest.raises(ConfigError, match=r"no study 'stalenes' in .*did you mean staleness\?"):
        find_study("stalenes", tmp_path)

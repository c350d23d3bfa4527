"""Which runs a study has, and how settings are chosen."""

import pytest

from holdfast.errors import ConfigError
from holdfast.study.plan import candidates, cells, check_plan, choose, merge, plan_reporting, plan_tuning, total_runs
from small_study import STUDY

TUNED = [
    {"name": "a", "set": {"objective.preset": "reinforce"}},
    {
        "name": "b",
        "set": {"objective.preset": "trm_max"},
        "tune": {"objective.delta": [0.05, 0.3], "optimizer.learning_rate": [1e-4, 2e-4]},
    },
]


@pytest.fixture
def tuned(make_study):
    return make_study(configuration=TUNED, seeds={"tuning": [0, 1], "reporting": [2, 3]}, tuning={"at": {"lag": 2}})


def test_every_configuration_runs_in_every_cell_with_every_seed(make_study):
    two = [
        {"name": "lag", "key": "engine.lag", "values": [0, 2]},
        {"name": "engine", "key": "engine.precision", "values": ["float32", "int8"]},
    ]
    study = make_study(factor=two, seeds={"reporting": [2, 3]})
    assert cells(study) == [
        {"lag": 0, "engine": "float32"},
        {"lag": 0, "engine": "int8"},
        {"lag": 2, "engine": "float32"},
        {"lag": 2, "engine": "int8"},
    ]
    planned = plan_reporting(study, {}, "study.toml")
    assert [run.seed for run in planned] == [2] * 8 + [3] * 8, "a study that is cut short has whole seeds"
    assert len({run.folder for run in planned}) == 16 == total_runs(study)
    run = planned[7]
    assert (run.config.engine.lag, run.config.engine.precision, run.config.objective.preset) == (2, "int8", "ppo")
    assert run.config.objective.options == {"denominator": "rollout"}


def test_one_warm_start_serves_every_configuration_of_a_seed(make_study):
    planned = plan_reporting(make_study(), {}, "study.toml")
    keys = {run.seed: {other.config.warm_start_key() for other in planned if other.seed == run.seed} for run in planned}
    assert all(len(those) == 1 for those in keys.values())
    assert len(set().union(*keys.values())) == len(keys)


def test_settings_are_tried_on_the_tuning_seeds_in_the_tuning_cell_only(tuned):
    runs = plan_tuning(tuned, "study.toml")
    assert len(candidates(tuned.configuration[1])) == 4 and len(runs) == 8
    assert {run.seed for run in runs} == {0, 1} and {run.configuration for run in runs} == {"b"}
    assert {run.config.engine.lag for run in runs} == {2}
    assert {run.config.objective.options["delta"] for run in runs} == {0.05, 0.3}
    assert total_runs(tuned) == 8 + 2 * 2 * 2


def test_the_best_mean_is_chosen_and_of_equals_the_first(tuned):
    runs = plan_tuning(tuned, "study.toml")

    def by(ends):
        return lambda run: ends[run.settings["objective.delta"], run.seed]

    wide = choose(tuned, by({(0.05, 0): 0.9, (0.05, 1): 0.0, (0.3, 0): 0.5, (0.3, 1): 0.5}), runs)
    assert wide == {"b": {"objective.delta": 0.3, "optimizer.learning_rate": 1e-4}}
    same = choose(tuned, lambda run: 0.5, runs)
    assert same["b"]["objective.delta"] == 0.05
    lowest = tuned.model_copy(update={"metric": tuned.metric.model_copy(update={"lowest": True})})
    tight = choose(lowest, by({(0.05, 0): 0.1, (0.05, 1): 0.1, (0.3, 0): 0.5, (0.3, 1): 0.5}), runs)
    assert tight["b"]["objective.delta"] == 0.05
    assert choose(tuned, lambda run: None if run.seed else 0.5, runs) == {}, "a tuning run is missing"
    reported = plan_reporting(tuned, wide, "study.toml")
    assert {run.config.objective.options.get("delta") for run in reported} == {None, 0.3}


def test_a_run_is_known_by_what_it_is(make_study):
    before = {run.folder for run in plan_reporting(make_study(), {}, "s")}
    other = make_study(base=STUDY["base"] | {"steps": 3})
    assert not before & {run.folder for run in plan_reporting(other, {}, "s")}
    renamed = make_study(title="Another title")
    assert before == {run.folder for run in plan_reporting(renamed, {}, "s")}, "words change no run"


def test_nothing_is_started_where_a_run_cannot_be_built(make_study):
    wrong = [*STUDY["configuration"][:1], {"name": "b", "set": {"objective.preset": "pppo"}}]
    with pytest.raises(ConfigError, match=r"study.toml \(b, lag = 0\): .*pppo"):
        check_plan(make_study(configuration=wrong), "study.toml")
    twice = [{"name": "a"}, {"name": "b", "set": {"objective.preset": "ppo"}}]
    with pytest.raises(ConfigError, match="'a' at lag = 0 and 'b' at lag = 0 are the same run"):
        check_plan(make_study(configuration=twice), "study.toml")


def test_keys_with_dots_reach_into_their_section_once():
    base = {"steps": 3, "objective": {"preset": "ppo"}}
    assert merge(base, {"objective.gate.low": 0.1, "steps": 4}) == {
        "steps": 4,
        "objective": {"preset": "ppo", "gate.low": 0.1},
    }
    assert merge(base, {"objective": {"delta": 0.1}}) == {"steps": 3, "objective": {"preset": "ppo", "delta": 0.1}}
    assert merge(base, {"engine.lag": 2})["engine"] == {"lag": 2}
    assert base == {"steps": 3, "objective": {"preset": "ppo"}}
    with pytest.raises(ConfigError, match="steps is a value"):
        merge(base, {"steps.more": 1})

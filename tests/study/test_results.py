"""From run folders to results: every started run is there, one that broke counts, one that was stopped does not."""

import json

import pytest
import tomli_w

import small_study
from holdfast.errors import DataError, HoldfastError
from holdfast.report.metrics import Metrics
from holdfast.study.definition import Number
from holdfast.study.plan import plan_reporting
from holdfast.study.results import (
    area,
    collect,
    number_of,
    read_results,
    reported,
    state_of,
    values_of,
    write_results,
)
from holdfast.study.run import collect_study, run_study


@pytest.fixture
def study(make_study):
    return make_study(seeds={"reporting": [2, 3]}, factor=[])


@pytest.fixture
def end(tmp_path, study):
    """Write a run's folder as training leaves it: (place in the plan, rewards by step, summary) -> the folder."""

    def write(place, rewards, summary):
        folder = tmp_path / "runs" / plan_reporting(study, {}, "s")[place].folder
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text("")
        rows = [{"step": step, "eval_reward": reward, "entropy": 0.5} for step, reward in rewards.items()]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if summary is not None:
            (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return write


def gathered(study, tmp_path):
    return collect_study(study, "s", tmp_path)


def test_every_started_run_is_reported_by_how_it_ended(study, end, tmp_path):
    end(0, {0: 0.5, 2: 0.2}, {"finished": True})
    broke = {"finished": False, "failed_step": 2, "error": "DataError: step 2: the gradient norm is nan"}
    end(1, {0: 0.5}, broke)
    end(2, {0: 0.5, 1: 0.6}, None)
    results = gathered(study, tmp_path)
    assert [run["state"] for run in results["runs"]] == ["finished", "failed", "unfinished"]
    finished, failed, stopped = results["runs"]
    assert (finished["value"], finished["start"], finished["collapsed"]) == (0.2, 0.5, True)
    assert finished["also"] == {"entropy:last": 0.5} and finished["curve"] == {"step": [0, 2], "value": [0.5, 0.2]}
    assert (failed["value"], failed["collapsed"]) == (0.0, True), "a run that broke counts as the study says"
    assert (failed["failed_step"], failed["error"]) == (2, "step 2: the gradient norm is nan")
    assert "value" not in stopped and results["planned"] == 4
    assert values_of(results, "a", {}) == {2: 0.2} and values_of(results, "b", {}) == {2: 0.0}


def test_what_the_machine_did_is_no_result(end):
    full = end(0, {0: 0.5}, {"finished": False, "failed_step": 2, "error": "OSError: No space left on device"})
    assert state_of(full)[0] == "unfinished"
    assert state_of(full.parent / "nothing") == ("missing", {})


def test_runs_of_settings_that_are_gone_are_listed(study, end, tmp_path, make_study):
    end(0, {0: 0.5, 2: 0.75}, {"finished": True})
    changed = make_study(
        seeds={"reporting": [2, 3]}, factor=[], base=small_study.BASE | {"steps": 3}, title="With a third step"
    )
    results = gathered(changed, tmp_path)
    assert results["runs"] == [] and len(results["dropped"]) == 1
    (gone,) = results["dropped"]
    assert gone["run"].startswith("a_seed=2-") and (gone["state"], gone["value"]) == ("finished", 0.75)


def test_a_run_of_an_older_version_is_known_by_its_configuration(study, tmp_path):
    """A key that came after the run changes the name that its folder would get today, and not the run."""
    planned = plan_reporting(study, {}, "s")
    older = []
    for run, number, rate in ((planned[0], "11111111", 1.0), (planned[1], "22222222", 2.0)):
        path = tmp_path / "runs" / f"{run.folder.rpartition('-')[0]}-{number}"
        written = run.config.to_dict()
        written["optimizer"]["learning_rate"] *= rate
        del written["guard"]["brake_in_a_row"], written["engine"]["replay_experts"]
        path.mkdir(parents=True)
        (path / "config.toml").write_text(tomli_w.dumps(written))
        (path / "metrics.jsonl").write_text('{"step": 2, "eval_reward": 0.5}\n')
        (path / "summary.json").write_text('{"finished": true}')
        older.append(path)
    results = gathered(study, tmp_path)
    assert [(run["configuration"], run["seed"], run["value"]) for run in results["runs"]] == [("a", 2, 0.5)]
    assert [gone["run"] for gone in results["dropped"]] == [older[1].name], "another learning rate is another run"
    assert planned[0].entry(tmp_path, tmp_path).done, "and is not run again"
    assert planned[1].place(tmp_path).name == planned[1].folder


def test_only_reporting_seeds_are_reported(study, results_of):
    results = results_of(study, {"a": [0.1], "b": [0.2]})
    results["runs"].append(results["runs"][0] | {"for": "tuning", "seed": 0})
    assert [run["seed"] for run in reported(results, "a", {})] == [2]
    assert values_of(results, "a", {}) == {2: 0.1} and values_of(results, "a", {}, "entropy:last") == {2: 0.25}


def test_a_number_is_what_its_name_says():
    metrics = Metrics(tuple({"step": s, "x": v} for s, v in ((0, 0.0), (10, 1.0), (40, 0.4))))

    def of(kind):
        return number_of(metrics, Number(key="x", of=kind, title="x"))

    assert [of("last"), of("lowest"), of("highest")] == [0.4, 0.0, 1.0]
    assert of("mean") == pytest.approx(1.4 / 3, abs=1e-4)
    # trapezoids: 10 * .5 + 30 * .7 = 26, over 40 steps
    assert of("area") == pytest.approx(0.65) == area([0, 10, 40], [0.0, 1.0, 0.4])
    assert area([5], [0.3]) == 0.3
    assert number_of(metrics, Number(key="y", title="y")) is None


def test_results_read_back_what_was_written(study, results_of, tmp_path):
    results = results_of(study, {"a": [0.123456, 1.0], "b": [0.0, 0.5]}, dropped=[])
    path = tmp_path / "new" / "small.json"
    write_results(path, results)
    again, kept = read_results(path)
    assert again == study and kept == results
    lines = path.read_text().splitlines()
    assert sum('"configuration": "a"' in line and '"seed"' in line for line in lines) == 2, "one run a line"


def test_results_of_another_study_are_refused(study, results_of, tmp_path):
    path = tmp_path / "small.json"
    write_results(path, results_of(study, {"a": [0.1], "b": [0.2]}))
    path.write_text(path.read_text().replace("b ends higher than a.", "b ends lower than a."))
    with pytest.raises(DataError, match=r"hash .* its results .*run `holdfast study` again"):
        read_results(path)
    path.write_text("[]")
    with pytest.raises(DataError, match="holds no study"):
        read_results(path)
    path.write_text("{")
    with pytest.raises(DataError, match="no JSON"):
        read_results(path)
    with pytest.raises(DataError, match="cannot read"):
        read_results(tmp_path / "gone.json")


def test_a_study_runs_resumes_and_runs_nothing_twice(study, tmp_path, monkeypatch):
    """The whole way on real runs: one breaks by itself, one is killed; only the killed one is run again."""
    from holdfast.train import loop

    score, started, killed = loop.score, [], []

    def troubled(run, episodes):
        name, seed = run.config.objective.preset, run.config.seed
        started.append((name, seed))
        if (name, seed) == ("reinforce", 2):
            raise DataError("step 1: the gradient norm is nan")
        if (name, seed) == ("ppo", 3) and not killed:
            killed.append(seed)
            raise KeyboardInterrupt
        return score(run, episodes)

    monkeypatch.setattr(loop, "score", troubled)
    notes: list[str] = []
    arguments = (study, "s", tmp_path / "out", tmp_path / "warm", 1, notes.append)
    with pytest.raises(KeyboardInterrupt):
        run_study(*arguments)
    first = gathered(study, tmp_path / "out")
    assert [run["state"] for run in first["runs"]] == ["failed", "finished", "finished", "unfinished"]
    started.clear()
    assert run_study(*arguments) == []
    assert set(started) == {("ppo", 3)}, "what has ended is not run again"
    assert len(list((tmp_path / "warm").iterdir())) == 2, "one warm start a seed"
    results = gathered(study, tmp_path / "out")
    assert [run["state"] for run in results["runs"]] == ["failed", "finished", "finished", "finished"]
    assert results["runs"][:3] == first["runs"][:3]
    assert results["versions"].keys() == {"holdfast", "python", "torch", "transformers"}
    started.clear()
    assert run_study(*arguments) == [] and started == []
    assert not list((tmp_path / "out").rglob("checkpoints"))


def test_a_run_that_the_machine_failed_is_named_and_run_again(study, tmp_path, monkeypatch):
    from holdfast.train import loop

    score = loop.score

    def crowded(run, episodes):
        if run.config.objective.preset == "ppo":
            raise HoldfastError("no memory is left")
        return score(run, episodes)

    monkeypatch.setattr(loop, "score", crowded)
    one = study.model_copy(update={"seeds": study.seeds.model_copy(update={"reporting": [2]})})
    said = run_study(one, "s", tmp_path, tmp_path / "warm", 1, lambda text: None)
    assert said == ["b, seed 2: failed: no memory is left"]
    assert [run["state"] for run in gathered(one, tmp_path)["runs"]] == ["finished", "unfinished"]


def test_results_hold_nothing_of_the_machine(study, end, tmp_path):
    end(0, {0: 0.5, 2: 0.2}, {"finished": True, "seconds": 123.4, "cpu_seconds": 99.0})
    results = collect(study, plan_reporting(study, {}, "s"), {}, tmp_path, {})
    text = json.dumps(results)
    assert "seconds" not in text and str(tmp_path) not in text

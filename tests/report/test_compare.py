import json
import re

import pytest

from holdfast.errors import DataError
from holdfast.report.compare import group_runs, verdict, write_compare_report


def run(objective, seed, final, **more):
    return {
        "objective": objective,
        "seed": seed,
        "config": "a.toml",
        "start_accuracy": 0.3,
        "final_accuracy": final,
    } | more


def said(runs):
    return re.sub("<[^>]*>", "", verdict(group_runs(runs))).replace("\xa0", " ")


def test_the_page_shows_every_seed_and_the_spread(results_folder, parse):
    folder = results_folder()
    path = write_compare_report(folder)
    seen = parse(path.read_text(encoding="utf-8"))
    assert path == folder / "report.html"
    assert len(seen.all("figure", "plot")) == 5
    runs = json.loads((folder / "results.json").read_text())["runs"]
    for finished in runs:
        assert f"{100 * finished['final_accuracy']:.1f}" in seen.text
    assert "int8 copy, 8 updates behind" in seen.text


def test_mean_and_sample_deviation(tmp_path, parse):
    # mean (.5 + .6 + .7) / 3 = .6; sample variance (.01 + 0 + .01) / 2 = .01, so sd = .1
    runs = [run("ppo", seed, final) for seed, final in enumerate((0.5, 0.6, 0.7))]
    (tmp_path / "results.json").write_text(json.dumps({"runs": runs}))
    text = parse(write_compare_report(tmp_path).read_text(encoding="utf-8")).text
    assert "ppo 60.0 10.0 50.0 60.0 70.0 30.0" in text


def test_the_verdict_names_the_highest_and_what_it_is_not_told_apart_from():
    runs = [run("a", 0, 0.6), run("a", 1, 0.7), run("b", 0, 0.5), run("b", 1, 0.65), run("c", 0, 0.1), run("c", 1, 0.2)]
    runs += [run("d", 0, 0.25), run("d", 1, 0.4)]
    words = said(runs)
    assert words.startswith("From 30 % at the start, a ended highest: 65 % on average over 2 seeds, from 60 % to 70 %.")
    assert "Its seeds overlap with those of b, so this comparison does not order them." in words
    assert words.endswith("order them. c ended below the start with every seed.")


def test_a_clear_lead_is_called_one_and_a_single_seed_is_not():
    pair = [run("a", 0, 0.6), run("a", 1, 0.7), run("b", 0, 0.4), run("b", 1, 0.5)]
    assert "Every one of its seeds ended above every seed of the others." in said(pair)
    assert "nothing can be said about chance" in said(pair[:3])
    assert "chance" not in said(pair[:2])
    assert said([{"objective": "a", "seed": 0}]) == "No run has a final accuracy, so there is nothing to compare."


def test_two_configs_of_one_objective_stay_apart():
    runs = [run("a", 0, 0.6), run("a", 0, 0.7, config="b.toml")]
    assert [g.name for g in group_runs(runs)] == ["a (b.toml)", "a (a.toml)"]


def test_a_curve_keeps_the_steps_that_every_seed_has():
    curve = lambda steps, values: {"step": steps, "accuracy": values}  # noqa: E731
    runs = [
        run("a", 0, 0.5, curve=curve([0, 1, 2], [0.1, 0.2, 0.3])),
        run("a", 1, 0.5, curve=curve([0, 2], [0.3, None])),
        run("a", 2, 0.5, curve=curve([0], [0.5])),
    ]
    assert group_runs(runs)[0].curve("accuracy") == {0: [0.1, 0.3, 0.5]}


def test_what_is_missing_is_a_dash(tmp_path, parse):
    (tmp_path / "results.json").write_text(json.dumps({"runs": [{"objective": "a"}, {"objective": "b", "curve": 3}]}))
    text = parse(write_compare_report(tmp_path).read_text(encoding="utf-8")).text
    assert "No final accuracy was measured." in text
    assert "a – – – – – – –" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "give the folder that `holdfast compare` wrote"),
        ("{", "is no JSON"),
        ("[]", "holds no runs"),
        ('{"runs": []}', "holds no runs"),
        ('{"runs": [{"seed": 1}]}', "holds no runs"),
    ],
)
def test_unusable_results_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(DataError, match=message):
        write_compare_report(tmp_path)


def test_hostile_names_stay_text(tmp_path, parse):
    hostile = "<script>alert(1)</script>"
    results = {"runs": [run(hostile, 0, 0.5)], "task": hostile, "engine": hostile}
    (tmp_path / "results.json").write_text(json.dumps(results))
    seen = parse(write_compare_report(tmp_path).read_text(encoding="utf-8"))
    assert len(seen.all("script")) == 1
    assert seen.text.count(hostile) >= 4

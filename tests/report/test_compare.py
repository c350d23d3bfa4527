import json
import re

import pytest

from holdfast.errors import DataError
from holdfast.report.compare import group_runs, measure_of, verdict, write_compare_report


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
    assert len(seen.all("figure", "plot")) - len(seen.all("figure", "extra")) == 5
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
    best = "a ended highest in sampled accuracy: 65 % on average over 2 seeds, from 60 % to 70 %."
    assert words.startswith(f"From 30 % at the start, {best}")
    assert "Its seeds overlap with those of b, so this comparison does not order them." in words
    assert words.endswith("order them. c ended below the start with every seed.")


def test_a_clear_lead_is_called_one_and_a_single_seed_is_not():
    pair = [run("a", 0, 0.6), run("a", 1, 0.7), run("b", 0, 0.4), run("b", 1, 0.5)]
    assert "Every one of its seeds ended above every seed of the others." in said(pair)
    assert "nothing can be said about chance" in said(pair[:3])
    assert "chance" not in said(pair[:2])
    assert (
        said([{"objective": "a", "seed": 0}]) == "No run has a final sampled accuracy, so there is nothing to compare."
    )


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
    assert "No final sampled accuracy was measured." in text
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


def ranked(*runs, key="eval_reward", title="mean reward on held-out problems", lowest=False):
    named = [{"objective": name, "seed": seed, "start": start, "final": final} for name, seed, start, final in runs]
    return {"runs": named, "ranked_by": {"key": key, "title": title, "lowest": lowest}}


def words_of(results):
    measure = measure_of(results)
    groups = group_runs(results["runs"], measure)
    return [g.name for g in groups], re.sub("<[^>]*>", "", verdict(groups, measure)).replace("\xa0", " ")


def test_rewards_of_any_scale_order_the_objectives():
    order, words = words_of(
        ranked(("a", 0, -3.0, -2.0), ("a", 1, -3.0, -1.5), ("b", 0, -3.0, 4.0), ("b", 1, -3.0, 6.5))
    )
    assert order == ["b", "a"]
    assert words == (
        "From −3 at the start, b ended highest in mean reward on held-out problems: 5.25 on average over 2 seeds, "
        "from 4 to 6.5. Every one of its seeds ended above every seed of the others."
    )


def test_the_lowest_can_be_the_best():
    results = ranked(
        ("a", 0, 0.2, 0.3), ("a", 1, 0.2, 0.4), ("b", 0, 0.2, 0.1), ("b", 1, 0.2, 0.15),
        key="kl_exact_mean", title="kl_exact_mean", lowest=True,
    )  # fmt: skip
    order, words = words_of(results)
    assert order == ["b", "a"] and "b ended lowest in kl_exact_mean: 0.125" in words
    assert words.endswith("ended below every seed of the others. a ended above the start with every seed.")
    overlap = ranked(("a", 0, 1, 0.3), ("a", 1, 1, 0.1), ("b", 0, 1, 0.1), ("b", 1, 1, 0.15), lowest=True)
    assert "overlap with those of a" in words_of(overlap)[1]


def test_the_page_of_rewards_has_accuracy_beside_where_it_was_measured(tmp_path, parse):
    results = ranked(("a", 0, 0.25, 0.5), ("b", 0, 0.25, 0.75))
    text = lambda: parse(write_compare_report(tmp_path).read_text(encoding="utf-8")).text  # noqa: E731
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert "accuracy" not in text() and "ranked by mean reward on held-out problems, highest first" in text()
    assert "Every dot is a seed." in text() and "tick" not in text(), "no mean is drawn over one seed"
    for run in results["runs"]:
        run["final_accuracy"] = run["final"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert "accuracy, %" in text() and "b 0.75 – 0.75 0.25 75.0 – – –" in text()


def test_captions_of_curves_follow_the_seeds(tmp_path, parse):
    results = ranked(("a", 0, 0.25, 0.5), ("b", 0, 0.25, 0.75))
    for run in results["runs"]:
        run["curve"] = {"step": [0, 1], "ranked": [run["start"], run["final"]]}

    def text():
        (tmp_path / "results.json").write_text(json.dumps(results))
        return parse(write_compare_report(tmp_path).read_text(encoding="utf-8")).text

    assert "Every line is one seed." in text() and "bands" not in text()
    results["runs"] += [run | {"seed": 1} for run in results["runs"]]
    assert "bands reach from the lowest to the highest seed." in text()

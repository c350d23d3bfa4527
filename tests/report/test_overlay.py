"""Several runs over each other: what differs, how they ended, and whether chance explains it."""

import json
import math
import random
from pathlib import Path

import pytest

from holdfast.errors import DataError
from holdfast.report.metrics import Metrics
from holdfast.report.overlay import difference_of, flat, in_words, names_of, overlay_page, write_overlay


@pytest.fixture
def two(run_folder):
    """Two short runs that differ in their threshold."""
    runs = []
    for name, delta in (("loose", 0.3), ("tight", 0.05)):
        folder, _ = run_folder(name=name, steps=6)
        (folder / "config.toml").write_text(f'steps = 6\n[objective]\npreset = "trm_max+ppo"\ndelta = {delta}\n')
        runs.append(folder)
    return runs


@pytest.fixture
def ended(evaluation_of):
    """Metrics of a run whose only evaluation had so many right answers."""
    return lambda right, problems=64: Metrics(({"step": 1} | evaluation_of(right, problems, random.Random(0)),))


def test_the_page_of_two_runs(two, tmp_path, parse):
    path = write_overlay(two, tmp_path / "both.html")
    seen = parse(path.read_text())
    assert "trm_max+ppo on ledger" in seen.text
    assert "objective.delta 0.3 0.05" in seen.text and "steps 6" not in seen.text, "only what differs"
    data = [json.loads(a["data-live"]) for a in seen.all("figure")]
    rewards = next(d for d in data if d["t"] == "reward_mean")
    assert [s["n"] for s in rewards["s"]] == ["loose", "tight"]


@pytest.mark.parametrize(
    ("rights", "said"),
    [
        # the first k of 64 problems are right: 16 of the differences are 1, (.25·.75·64/63/64)^½ = .0546; 2 are 2.9 %
        ((48, 32), "a and b differ by 0.25, standard error 0.055: more than chance over the problems explains."),
        ((34, 32), "a and b differ by 0.031, standard error 0.022: no more than chance"),
        ((32, 32), "a and b are equal."),
    ],
)
def test_a_difference_is_held_against_its_standard_error(ended, rights, said):
    assert said in in_words(dict(zip("ab", map(ended, rights), strict=True))).replace("<strong>", "")


def test_other_problems_have_the_error_of_both(ended):
    difference, error = difference_of(ended(48, 64), ended(50, 100))
    assert difference == pytest.approx(0.25)
    assert error == pytest.approx(math.hypot(math.sqrt(0.75 * 0.25 / 63), math.sqrt(0.25 / 99)))


def test_runs_without_evaluations_are_not_compared():
    rows = Metrics(({"step": 1, "reward_mean": 0.5},))
    assert "nothing is compared" in in_words({"a": rows, "b": rows})


def test_a_run_without_a_configuration_is_said(two, parse):
    (two[1] / "config.toml").unlink()
    text = parse(overlay_page(dict(zip("ab", two, strict=True)))).text
    assert "config.toml is missing or cannot be read in b." in text


def test_names_are_as_short_as_they_can_be():
    assert names_of([Path("/x/runs/a"), Path("/x/runs/b")]) == ["a", "b"]
    assert names_of([Path("/x/one/run"), Path("/x/two/run")]) == ["one/run", "two/run"]


def test_configurations_are_compared_by_key():
    assert flat({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}


def test_bad_input_is_a_sentence(two, tmp_path):
    with pytest.raises(DataError, match="1 run to draw"):
        write_overlay([two[0], two[0]], tmp_path / "x.html")
    with pytest.raises(DataError, match="no run folder"):
        write_overlay([two[0], tmp_path / "gone"], tmp_path / "x.html")

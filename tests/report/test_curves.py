"""A curve for every number, as data for the page's script and as a table without it."""

import json

from holdfast.report.curves import curves, series_of
from holdfast.report.metrics import Metrics

ROWS = tuple(
    {"step": k, "reward_mean": k / 10, "kl_exact_mean": 10.0**-k, "bounds": {"mixed": 2.0 / k}, "mine": 1.0}
    for k in range(1, 6)
)


def drawn(markup, parse):
    """Data of each figure by its title."""
    return {d["t"]: d for a in parse(markup).all("figure") if "data-live" in a for d in [json.loads(a["data-live"])]}


def test_every_number_is_a_curve(parse):
    found = drawn(curves({"a": Metrics(ROWS)}), parse)
    assert list(found) == ["reward_mean", "kl_exact_mean", "bounds.mixed", "mine"], "by group"
    (line,) = found["reward_mean"]["s"]
    assert (line["n"], line["x"], line["y"]) == ("a", [1, 2, 3, 4, 5], [0.1, 0.2, 0.3, 0.4, 0.5])
    assert found["kl_exact_mean"]["l"] == 1 and "l" not in found["reward_mean"], "drift over decades is logarithmic"


def test_several_runs_share_a_chart_and_keep_their_own_steps(parse):
    other = Metrics(tuple(row | {"step": row["step"] + 2} for row in ROWS[:2]))
    found = drawn(curves({"a": Metrics(ROWS), "b": other}), parse)
    first, second = found["reward_mean"]["s"]
    assert (first["n"], second["n"]) == ("a", "b")
    assert (second["x"], second["y"]) == ([3, 4], [0.1, 0.2])


def test_the_ends_are_a_table_without_a_script(parse):
    text = parse(curves({"a": Metrics(ROWS)})).text
    assert "reward_mean 5 0.1 0.5 0.1 0.5" in text
    assert "bounds.mixed 5 2 0.4 0.4 2" in text


def test_a_long_run_keeps_its_spike_and_its_size(parse):
    rows = tuple({"step": k, "loss": 100.0 if k == 7777 else 1.0} for k in range(20_000))
    (line,) = drawn(curves({"a": Metrics(rows)}), parse)["loss"]["s"]
    assert len(line["y"]) < 70_000 and 100 in line["y"] and line["x"][line["y"].index(100)] == 7777


def test_nothing_measured_is_no_section():
    assert curves({"a": Metrics(())}) == ""


def test_series_hold_only_the_steps_that_measured_them():
    rows = ({"step": 1, "loss": 1.0}, {"step": 2}, {"step": 3, "loss": None}, {"step": 4, "loss": 2.0})
    assert series_of(Metrics(rows)) == {"loss": ([1, 4], [1.0, 2.0])}

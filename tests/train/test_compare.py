"""What objectives are ordered by: any number of metrics.jsonl, in the order that the user wants."""

import json

import pytest

from holdfast.errors import ConfigError
from holdfast.train.compare import Entry, Ranking, collect, table_rows


@pytest.fixture
def finished(tmp_path, small_config):
    """A finished run's folder with these rows of metrics."""

    def make(label, rows, seed=0):
        path = tmp_path / label / str(seed)
        path.mkdir(parents=True)
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (path / "summary.json").write_text(json.dumps({"finished": True, "seconds": 2.0, "final_entropy": 0.5}))
        return Entry(label, "a.toml", small_config("--seed", str(seed)), path, tmp_path)

    return make


def rows(start, end, **more):
    return [{"step": 0, "eval_reward": start}, {"step": 5, "eval_reward": end, "reward_mean": 7.0, **more}]


def older(accuracy):
    """Metrics from before there were held-out rewards; the mean reward of the step is .5."""
    end = {"step": 1, "eval_accuracy": accuracy, "reward_mean": 0.5, "accuracy": accuracy}
    return [{"step": 0, "eval_accuracy": 0.0}, end]


def test_the_reward_orders_numerically_and_not_by_its_digits(finished):
    entries = [finished("a", rows(1.0, 9.5)), finished("b", rows(1.0, 10.5)), finished("c", rows(1.0, -20.0))]
    assert [row[:3] for row in table_rows(collect(entries))] == [
        ["b", "1", "10.5"], ["a", "1", "9.5"], ["c", "1", "-20"],
    ]  # fmt: skip
    lowest = collect(entries, Ranking.by("reward", lowest=True))
    assert [row[0] for row in table_rows(lowest)] == ["c", "a", "b"]


def test_any_number_of_a_step_can_be_named(finished):
    entries = [finished("a", rows(1.0, 2.0, grad_norm=3.0)), finished("b", rows(1.0, 3.0))]
    results = collect(entries, Ranking.by("grad_norm"))
    assert [run["final"] for run in results["runs"]] == [3.0, None]
    assert [row[2] for row in table_rows(results)] == ["3", "–"]
    assert [run["final"] for run in collect(entries, Ranking.by("training_reward"))["runs"]] == [7.0, 7.0]
    with pytest.raises(ConfigError, match=r"--rank-by grad_nrom: no run .* did you mean grad_norm\?"):
        collect(entries, Ranking.by("grad_nrom"))


def test_accuracy_is_ranked_by_only_where_rewards_are_0_or_1(finished):
    graded = finished("a", older(0.1))
    with pytest.raises(ConfigError, match="only where every reward is 0 or 1"):
        collect([graded], Ranking.by("accuracy"))
    with pytest.raises(ConfigError, match="eval_reward: no run has measured it"):
        collect([graded])
    old = finished("b", older(0.5))
    for name in ("accuracy", "reward"):
        (run,) = collect([old], Ranking.by(name))["runs"]
        assert (run["start"], run["final"], run["curve"]["ranked"]) == (0.0, 0.5, [0.0, 0.5])

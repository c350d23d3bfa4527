"""What a run learned: by reward and its standard error, whatever the scale of the rewards."""

import re

import pytest

from holdfast.report.learning import learning, progress, zero_or_one
from holdfast.report.metrics import Metrics
from holdfast.report.words import headline


def run(*evaluations, **more):
    """Metrics of a run with these held-out rewards at steps 0, 10, 20, ..."""
    rows = []
    for number, rewards in enumerate(evaluations):
        mean = sum(rewards) / len(rewards)
        row = {"step": 10 * number, "eval_reward": mean, "eval_rewards": list(rewards)}
        rows.append(row | ({"eval_accuracy": mean} if set(rewards) <= {0.0, 1.0} else {}) | more)
    return Metrics(tuple(rows))


def said(metrics):
    return re.sub("<[^>]*>", "", headline(metrics)).replace("\xa0", " ")


def drawn(metrics):
    return re.findall("<h3>(.*?)</h3>", learning(metrics))


def test_the_error_is_that_of_the_differences_problem_by_problem():
    found = progress(run([0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 4.0, 4.0]))
    # differences 1, 1, 2, 1, 0: mean 1, squares of the rest 0 + 0 + 1 + 0 + 1 = 2; sqrt(2 / 4 / 5)
    assert (found.start, found.end, found.change) == (2.0, 3.0, 1.0)
    assert found.error == pytest.approx(0.1**0.5)
    assert found.clear
    assert not progress(run([0.0, 1.0, 2.0, 3.0, 4.0], [2.0, 0.0, 4.0, 4.0, 3.0])).clear, "0.6 with an error of .68"


def test_without_the_problems_the_errors_of_both_evaluations_add_up():
    rows = (
        {"step": 0, "eval_reward": 1.0, "eval_reward_se": 0.3},
        {"step": 9, "eval_reward": 2.0, "eval_reward_se": 0.4},
    )
    found = progress(Metrics(rows))
    assert found.error == pytest.approx(0.5) and found.change == 1.0 and not found.clear, "just two errors"
    smaller = tuple(row | {"eval_reward_se": 0.9 * row["eval_reward_se"]} for row in rows)
    assert progress(Metrics(smaller)).clear, "1 is more than twice .45"
    assert progress(Metrics(tuple(row | {"eval_reward_se": None} for row in rows))).error is None


def test_training_rewards_are_judged_where_nothing_is_held_out():
    rows = tuple({"step": k + 1, "reward_mean": float(v)} for k, v in enumerate([0, 1, 0, 1, 0, 5, 5, 6, 5, 5, 6]))
    found = progress(Metrics(rows))
    # first five: mean .4, deviation sqrt(.3); last five: mean 5.4, deviation sqrt(.3); both over sqrt(5)
    assert (found.start, found.end) == pytest.approx((0.4, 5.4)) and found.error == pytest.approx((0.6 / 5) ** 0.5)
    assert said(Metrics(rows)).startswith("Mean reward of the training rollouts rose from 0.4 to 5.4 in 11 steps")
    assert "went from 0.5 to 2.5 in 4 steps; its standard error is not known." in said(Metrics(rows[2:6]))


def test_a_run_that_learns_graded_rewards_is_not_called_a_failure():
    """No reward reaches 1, so the share of rewards of at least 1 is 0 from start to end."""
    metrics = run([-1.0, -0.9, -0.8, -0.9, -1.0, -0.7], [0.2, 0.1, 0.4, 0.2, 0.3, 0.5], reward_mean=0.1)
    text = said(metrics)
    assert text.startswith("Mean reward on held-out problems rose from −0.883 to 0.283 in 1 step (+1.2, standard error")
    assert "Nothing was learned" not in text and "accurac" not in text and "right" not in text
    assert "Accuracy" not in drawn(metrics) and "Reward" in drawn(metrics) and "Held-out rewards" in drawn(metrics)


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [
        ([0.0] * 30 + [1.0] * 10, [1.0] * 30 + [0.0] * 10, "rose from 0.25 to 0.75"),
        ([1.0] * 30 + [0.0] * 10, [0.0] * 40, "fell from 0.75 to 0"),
        ([0.0, 1.0] * 20, [0.0, 1.0] * 19 + [1.0, 1.0], "no more than chance explains, so learning is not shown"),
        ([0.0, 1.0] * 20, [0.0, 1.0] * 20, "is at 0.5, where it started"),
    ],
)
def test_the_headline_judges_by_the_standard_error(start, end, words):
    assert words in said(run(start, end))


def test_accuracy_stands_beside_rewards_of_0_or_1():
    metrics = run([0.0] * 30 + [1.0] * 10, [1.0] * 30 + [0.0] * 10)
    assert "25 % of the sampled answers were right at first, 75 % at the end" in said(metrics)
    assert drawn(metrics) == ["Reward", "Held-out rewards", "Accuracy"]


def test_rewards_of_0_or_1_are_known():
    assert zero_or_one(Metrics(({"step": 1, "reward_mean": 0.5, "accuracy": 0.5},)))
    assert not zero_or_one(Metrics(({"step": 1, "reward_mean": 0.5},)))
    assert not zero_or_one(Metrics(({"step": 1, "reward_mean": 0.5, "accuracy": 0.0},))), "an older run, graded"
    assert not zero_or_one(Metrics(()))
    # all rewards of one step are 0 by chance, another step's are graded
    mixed = ({"step": 1, "reward_mean": 0.0, "accuracy": 0.0}, {"step": 2, "reward_mean": 0.3})
    assert not zero_or_one(Metrics(mixed))


def test_older_runs_are_drawn():
    """Before there were held-out rewards: accuracies, which are rewards where these are 0 or 1."""
    rows = [{"step": 0, "eval_accuracy": 0.25, "eval_greedy_accuracy": 0.5}]
    rows += [{"step": k, "reward_mean": 0.2 + k / 40, "accuracy": 0.2 + k / 40} for k in range(1, 20)]
    rows += [rows[-1] | {"step": 20, "eval_accuracy": 0.75, "eval_greedy_accuracy": 0.5}]
    metrics = Metrics(tuple(rows))
    assert drawn(metrics) == ["Reward", "Accuracy"]
    assert "The distribution of the held-out rewards was not recorded." in learning(metrics)
    assert "25 % of the sampled answers were right at first, 75 % at the end" in said(metrics)
    graded = Metrics(tuple(row | ({"reward_mean": 3.0} if "reward_mean" in row else {}) for row in rows))
    assert drawn(graded) == ["Reward"] and "right" not in said(graded)


def test_the_distribution_has_a_row_per_reward_or_per_bin():
    def cells(metrics):
        rows = re.findall(r"<tr[^>]*>(.*?)</tr>", learning(metrics), re.DOTALL)
        return [
            [re.sub("<[^>]+>", "", c) for c in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows
        ]

    few = cells(run([0.0, 0.0, 0.5, 2.0], [2.0, 2.0, 2.0, 0.5]))
    for row in (["2", "0", "25"], ["0.5", "0", "25"], ["0", "0", "50"], ["2", "10", "75"], ["0", "10", "0"]):
        assert row in few
    many = cells(run([float(k) for k in range(13)], [12.0] * 13))
    assert ["10 to 12", "0", "15.4"] in many and ["10 to 12", "10", "100"] in many and ["0 to 2", "0", "23.1"] in many
    long = learning(run(*[[0.0, 1.0]] * 60))
    assert "24 of 60 evaluations, the first and the last among them." in long
    assert "evaluations" not in learning(run(*[[0.0, 1.0]] * 24))


def test_the_band_and_the_captions_follow_what_was_recorded():
    rows = tuple({"step": k, "eval_reward": 0.5, "eval_reward_se": 0.1} for k in (0, 10))
    assert "two standard errors" in learning(Metrics(rows)) and "Greedy" not in learning(Metrics(rows))
    assert "Training rewards" not in learning(Metrics(rows))
    bare = learning(Metrics((rows[0], {"step": 10, "eval_reward": 0.5, "eval_greedy_reward": 1.0})))
    assert "two standard errors" not in bare and "Greedy takes" in bare
    assert "<svg" not in learning(Metrics(({"step": 1},)))


def test_the_training_distribution_is_drawn():
    metrics = Metrics(tuple({"step": k, "reward_quartiles": [-1, 0, 0.5, 1, 3], "reward_mean": 0.6} for k in (1, 2)))
    assert drawn(metrics) == ["Reward", "Training rewards of a step"]

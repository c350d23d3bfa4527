"""What is said of courses that everybody would call broken, and that nothing is said of good ones."""

import numpy as np
import pytest

from holdfast.audit.course import MISMATCH, VOCABULARY, Course, Series
from holdfast.audit.judge.course import COURSE_CHECKS, judge_course
from holdfast.audit.judge.course.numerics import LIGHTS, _distance
from holdfast.audit.judge.more import MORE, WHAT, more_to_log
from holdfast.audit.read.scalars.names import TABLES

N = 60
RISING = np.linspace(0.2, 0.8, N)
SINKING = np.concatenate([np.linspace(0.2, 0.8, 30), np.linspace(0.8, 0.1, 30)])


def course(**values):
    rng = np.random.default_rng(0)
    noisy = {n: np.asarray(v, float) * (1 + 0.02 * rng.normal(size=len(v))) for n, v in values.items()}
    return Course({n: Series(np.arange(1, len(v) + 1), v, named=f"their {n}") for n, v in noisy.items()})


def said(made):
    return {f.name: f for f in judge_course(made)[0]}


def ramp(first, last):
    return np.concatenate([np.full(20, first), np.linspace(first, last, 20), np.full(20, last)])


def test_a_good_run_is_left_alone():
    good = course(
        reward=RISING, entropy=ramp(0.5, 0.4), length=ramp(500, 900), truncated=ramp(0.02, 0.05),
        mismatch_kl=ramp(1e-3, 1.5e-3), gradient_norm=ramp(0.5, 0.4), clip_share=ramp(0.01, 0.02),
        learning_rate=ramp(1e-6, 1e-6), kl_ref=ramp(1e-4, 0.05), kl_old=ramp(1e-4, 2e-4), reward_std=ramp(0.4, 0.4),
    )  # fmt: skip
    assert said(good) == {}


@pytest.mark.parametrize(("name", "values", "severity", "words"), [
    ("reward_falls", {"reward": SINKING}, "critical", "fell from"),
    ("reward_falls", {"reward": ramp(0.8, 0.65)}, "warning", "the level changes at step 3"),
    ("reward_flat", {"reward": np.full(200, 0.3)}, "warning", "has not risen in 200 steps"),
    ("entropy_explodes", {"entropy": ramp(0.4, 1.6), "reward": SINKING}, "critical", "while the reward fell"),
    ("entropy_explodes", {"entropy": ramp(0.4, 1.6), "reward": RISING}, "info", "while the reward rose"),
    ("entropy_explodes", {"entropy": ramp(0.4, 1.6)}, "warning", "from 0.401 to 1.61"),
    ("entropy_collapse", {"entropy": ramp(0.5, 0.05), "reward": np.full(N, 0.3)}, "critical", "did not rise"),
    ("entropy_collapse", {"entropy": ramp(0.5, 0.05), "reward": RISING}, "info", "rose"),
    ("lengths_explode", {"length": ramp(300, 3000), "reward": SINKING}, "critical", "grew from"),
    ("lengths_collapse", {"length": ramp(300, 20), "reward": SINKING}, "critical", "shrank from"),
    ("truncation", {"truncated": ramp(0.05, 0.95), "reward": SINKING}, "critical", "rose from 5% to 96%"),
    ("mismatch", {"mismatch_kl": ramp(1e-3, 0.1)}, "critical", "move apart"),
    ("mismatch", {"mismatch_kl": ramp(0.03, 0.03)}, "warning", "far apart"),
    ("mismatch", {"mismatch_kl": [*ramp(1e-3, 1e-3), 0.5, 0.6]}, "critical", "jump apart at step 61"),
    ("mismatch", {"mismatch_probs": ramp(0.002, 0.02)}, "critical", "difference of probabilities"),
    ("mismatch", {"mismatch_ratio": ramp(1.2, 1.2)}, "warning", "ratio"),
    ("kl", {"kl_ref": ramp(1e-3, 2.0), "reward": SINKING}, "critical", "reference"),
    ("kl", {"kl_old": ramp(0.2, 0.2)}, "warning", "one step moves"),
    ("gradient", {"gradient_norm": np.where(np.arange(N) % 12 == 5, 20.0, 0.5)}, "warning", "spikes at 5 steps"),
    ("gradient", {"gradient_norm": ramp(0.5, 10), "reward": SINKING}, "critical", "grew from"),
    ("gradient", {"gradient_norm": [*np.ones(20), *np.zeros(6)]}, "critical", "is 0"),
    ("clip_share", {"clip_share": ramp(0.1, 0.45)}, "warning", "45%"),
    ("clip_share", {"clip_share": ramp(0.1, 0.9)}, "critical", "91%"),
    ("learning_rate", {"learning_rate": np.zeros(N)}, "critical", "0 at every step"),
    ("learning_rate", {"learning_rate": [*np.ones(30), *np.zeros(30)]}, "warning", "0 from step 31"),
    ("rewards_equal", {"reward": np.zeros(N), "reward_std": np.zeros(N)}, "critical", "nothing is learnt"),
    ("rewards_equal", {"equal_groups": [*np.full(40, 0.2), *np.full(20, 1.0)]}, "critical", "from step 41"),
    ("not_finite", {"loss": [*np.zeros(50), *np.full(10, np.nan)]}, "critical", "loss at 10 of 60 steps, first at"),
    ("not_finite", {"gradient_norm": [*np.ones(50), *np.full(5, np.inf), *np.ones(5)]}, "warning", "5 of 60"),
])  # fmt: skip
def test_what_everybody_would_call_broken(name, values, severity, words):
    found = said(course(**values))
    assert found[name].severity == severity
    assert words in found[name].headline
    assert found[name].where.steps


def test_responses_that_grow_with_the_reward_are_left_alone():
    assert said(course(length=ramp(500, 3000), reward=RISING)) == {}
    assert said(course(length=ramp(500, 200), reward=RISING)) == {}


def test_a_solved_task_is_no_fault():
    found = said(course(reward=np.full(N, 1.0), reward_std=np.zeros(N)))
    assert {f.severity for f in found.values()} == {"info"}


def test_all_cut_and_paid_alike_is_one_finding_at_any_number_of_steps():
    made = Course({
        "reward": Series(np.arange(4), np.zeros(4)), "reward_std": Series(np.arange(4), np.zeros(4)),
        "truncated": Series(np.arange(4), np.ones(4)),
    })  # fmt: skip
    (found,) = judge_course(made)[0]
    assert (found.name, found.severity) == ("truncation", "critical")
    assert "every response is cut by the length limit, and every reward is 0" in found.headline


def test_one_infinite_gradient_is_what_a_loss_scaler_skips():
    values = np.ones(N)
    values[7] = np.inf
    assert said(course(gradient_norm=values)) == {}


def test_checks_name_what_they_lack():
    _, asked, skipped = judge_course(course(reward=RISING))
    assert set(asked) | set(skipped) == {check.name for check in COURSE_CHECKS}
    assert skipped["mismatch"] == (" or ".join(MISMATCH),)
    assert "reward_falls" in asked


def test_every_need_is_of_the_vocabulary():
    assert {need for check in COURSE_CHECKS for need in check.needs} <= set(VOCABULARY)
    assert set(LIGHTS) == set(MISMATCH)
    assert {ours for table in TABLES.values() for ours in table} <= set(VOCABULARY)


def test_more_is_told_of_every_framework():
    assert set(MORE) == set(TABLES)
    assert all(set(lines) <= set(WHAT) and "tokens" in lines for lines in MORE.values())
    told = more_to_log(Course(course(reward=RISING).series, "verl"))
    assert ("actor_rollout_ref.rollout.calculate_log_probs=true" in told[0][1]) and "records=" in told[-1][1]
    assert more_to_log(course(reward=RISING)) != ()


def test_a_mismatch_is_judged_by_what_went_before_too():
    """A guard's window forgets how much a number swung, unless its series tells; a ratio is one where both agree."""
    series = Series(np.arange(1, 4), np.array([0.9, 1.2, 1.0]), past=np.array([1.5, 0.5]), memory=0.8)
    for name, one in (("mismatch_ratio", 1.0), ("mismatch_kl", 0.0)):
        found = _distance(Course({name: series}), name)
        assert found.memory == 0.8
        np.testing.assert_allclose(found.past, np.abs(series.past - one))
        np.testing.assert_allclose(found.values, np.abs(series.values - one))

"""Advantages that the rewards of a group made in any accepted way, and in wrong ones."""

import dataclasses

import numpy as np
import pytest

from holdfast.audit.judge.checks.credit.group_advantages import GroupAdvantages
from holdfast.audit.simulate.run import ESTIMATORS
from holdfast.types import Rollout


def rollout(group, reward, advantage, step=1, tokens=3, **more):
    values = advantage if isinstance(advantage, tuple) else (advantage,) * tokens
    return Rollout(
        **{"prompt_ids": (group,), "response_ids": tuple(range(len(values))), "group_id": group, "step": step} | more,
        reward=reward,
        advantages=values,
    )


def rewards_of(groups=40, size=8, seed=0, levels=(0.0, 1.0)):
    return np.random.default_rng(seed).choice(levels, (groups, size))


def run_of(rewards, advantages, **more):
    return [
        rollout(g, float(r), float(a), **more)
        for g, (row, values) in enumerate(zip(rewards, advantages, strict=True))
        for r, a in zip(row, values, strict=True)
    ]


def centred(rewards):
    return rewards - rewards.mean(1, keepdims=True)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("tokens", [700, 10_000])
def test_healthy_estimators_are_let_through(look, healthy, estimator, tokens):
    assert look(GroupAdvantages, healthy(estimator=estimator), tokens) == []


@pytest.mark.parametrize("levels", [(0.0, 1.0), (-1.0, 0.0, 0.3, 2.0)])
def test_other_baselines_are_let_through(look, levels):
    rewards = rewards_of(levels=levels)
    lengths = np.random.default_rng(1).integers(2, 9, rewards.shape)
    weighted = rewards - (rewards * lengths).sum(1, keepdims=True) / lengths.sum(1, keepdims=True)
    by_length = [
        rollout(g, float(rewards[g, i]), float(weighted[g, i]), tokens=int(lengths[g, i]))
        for g in range(40)
        for i in range(8)
    ]
    assert look(GroupAdvantages, by_length) == []  # OPO: the mean over tokens
    ranks = rewards.argsort(1).argsort(1) + 0.0
    ties = np.stack([[row_ranks[row == r].mean() for r in row] for row, row_ranks in zip(rewards, ranks, strict=True)])
    assert look(GroupAdvantages, run_of(rewards, centred(ties))) == []  # ranks
    assert look(GroupAdvantages, run_of(rewards, np.clip(centred(rewards), -0.6, 0.6) * 0 + centred(rewards) / 3)) == []
    greedy = np.random.default_rng(2).choice(levels, (40, 1))
    assert look(GroupAdvantages, run_of(rewards, rewards - greedy)) == []  # ReMax: another answer's reward


def test_a_reversed_sign(look, faulty):
    (got,) = look(GroupAdvantages, faulty("reversed", 1.0))
    assert got.severity == "critical"
    assert got.kind == "training"
    assert "100% of" in got.headline
    assert "its sign is reversed" in got.headline


def test_half_of_the_groups_reversed_or_other_rows_have_no_relation(look, faulty):
    for name, strength in (("reversed", 0.5), ("other_rows", 1.0)):
        (got,) = look(GroupAdvantages, faulty(name, strength))
        assert got.headline.startswith("advantages have little to do with the rewards beside them")


def test_the_first_member_as_the_baseline(look, faulty):
    (got,) = look(GroupAdvantages, faulty("first_is_the_mean", 1.0))
    assert got.headline.startswith("the first member of every group has advantage 0")
    rewards = rewards_of()
    (got,) = look(GroupAdvantages, run_of(rewards, (rewards - rewards[:, -1:]) / 1e-3))
    assert got.headline.startswith("the last member of every group has advantage 0")
    assert "its reward is taken for the group's mean" in got.headline


def test_a_cut_by_position(look, faulty):
    (got,) = look(GroupAdvantages, faulty("by_position", 0.1))
    assert got.severity == "critical"
    assert "equal rewards have different advantages; over every 8 neighbouring rows they do" in got.headline


def test_rows_dealt_out_in_turns(look):
    # Rows are ordered answer by answer, groups cut prompt by prompt: repeat against repeat_interleave.
    rewards = rewards_of(48, 3)
    # Row 3 g + i is answer i to prompt g; the groups take rows j, j + 48 and j + 96.
    wrong = centred(rewards.reshape(3, 48).T).T.reshape(48, 3)
    run = run_of(rewards, wrong)
    (got,) = look(GroupAdvantages, run)
    assert "; over rows dealt out in turns, 3 to a group, they do" in got.headline


def test_a_cut_that_nobody_knows(look):
    rewards = rewards_of(64, 4)
    order = np.random.default_rng(3).permutation(256)
    wrong = np.empty(256)
    wrong[order] = centred(rewards.ravel()[order].reshape(64, 4)).ravel()
    (got,) = look(GroupAdvantages, run_of(rewards, wrong.reshape(64, 4)))
    assert "not made from the rewards of their own group" in got.headline
    assert "they do not sum to 0 and equal rewards have different advantages" in got.headline


@pytest.mark.parametrize("ids", ["prompt", "each its own", None])
def test_no_baseline(look, ids):
    rewards = rewards_of()
    run = run_of(rewards, rewards)
    if ids != "prompt":
        run = [dataclasses.replace(r, group_id=1000 + i if ids else None) for i, r in enumerate(run)]
    (got,) = look(GroupAdvantages, run)
    assert got.severity == "warning"
    assert f"{rewards.mean():+.2g}" in got.headline
    assert "the advantage is the reward itself: groups of 8 answers have no baseline" in got.headline
    assert ("each sequence has a group id of its own" in got.headline) == (ids == "each its own")


def test_a_baseline_that_does_not_centre(look):
    rewards = rewards_of()
    (got,) = look(GroupAdvantages, run_of(rewards, rewards * 3 - 0.5))
    assert got.severity == "warning"
    assert got.headline.startswith("advantages do not sum to 0 in 100% of 40 groups")
    assert got.evidence["share off centre"] == 1


def test_nan_advantages_are_named_and_those_outside_the_mask_are_not(look):
    rewards = rewards_of()
    run = run_of(rewards, centred(rewards))
    run[5] = dataclasses.replace(run[5], advantages=(0.0, float("nan"), 0.0))
    (got,) = look(GroupAdvantages, run)
    assert got.headline.startswith("1 advantages of trained tokens are NaN or infinite")
    assert got.where.positions == ((5, 1),)
    run[5] = dataclasses.replace(run[5], response_mask=(True, False, True))
    assert look(GroupAdvantages, run) == []


def test_what_is_not_judged(look):
    rewards = rewards_of()
    wrong = -centred(rewards)
    by_token = [dataclasses.replace(r, advantages=(r.advantages[0], 0.1, 0.2)) for r in run_of(rewards, wrong)]
    assert look(GroupAdvantages, by_token) == []  # a critic's
    assert look(GroupAdvantages, run_of(rewards[:7], wrong[:7])) == []  # too few
    assert look(GroupAdvantages, run_of(rewards, wrong * 0)) == []  # nothing is learnt: said elsewhere
    nameless = [dataclasses.replace(r, prompt_ids=(), group_id=None) for r in run_of(rewards, wrong)]
    assert look(GroupAdvantages, nameless) == []
    unpaid = [dataclasses.replace(r, reward=None) for r in run_of(rewards, wrong)]
    assert look(GroupAdvantages, unpaid) == []

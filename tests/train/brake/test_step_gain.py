"""First order and worst curvature of a step: by hand, and against bandits whose true gain is known."""

import math

import numpy as np
import pytest
import torch

from holdfast.errors import DataError
from holdfast.train.brake.step_gain import StepGain, step_gain


def by_hand(low=0.0, order=(0, 1, 2, 3, 4, 5)):
    """Three prompts of two responses.

    w A Δ     2 · 1 · .2, 1 · -1 · -.1 | 0, 0 | 1 · -1 · .1, .5 · 1 · .3     m = .25, 0, .025
    w b Δ²    0, 1 · 1 · .01 | 1 · .5 · .16, 0 | 1 · 1 · .01, 0
    w Δ²      2 · .04, .01 | .16, 0 | .01, .5 · .09
    """
    columns = (
        [0.2, -0.1, 0.4, 0.0, 0.1, 0.3],
        [math.log(2), 0.0, 0.0, 0.0, 0.0, math.log(0.5)],
        [1.0, 0.0, 0.5, 0.5, 0.0, 1.0],
        [4, 4, 9, 9, 5, 5],
    )
    return step_gain(*(torch.tensor(column)[list(order)] for column in columns), low)


def test_all_four_by_hand():
    found = by_hand()
    assert found.gain == pytest.approx(0.275 / 3)
    assert found.error == pytest.approx(0.0794948, abs=1e-6)  # the sample's standard deviation .137689 over √3
    assert found.cost == pytest.approx(0.1 / 6) and found.fisher == pytest.approx(0.305 / 6)
    assert found.informed == 2 and found.speaks
    assert by_hand(low=-1.0).cost == pytest.approx(0.405 / 6), "one more than that, of which each b is above -1"
    mixed = by_hand(order=(5, 2, 0, 3, 1, 4))
    assert [mixed.gain, mixed.error, mixed.cost] == pytest.approx([found.gain, found.error, found.cost])


def test_the_bound_and_where_it_is_highest():
    found = by_hand()
    assert found.best(0.5) == pytest.approx(0.0519193 / (0.1 / 6), abs=1e-5)
    assert found.lower(2.0, 0.5) == pytest.approx(2 * 0.0519193 - 4 * (0.1 / 6) / 2, abs=1e-6)
    for scale in (0.9, 1.1):
        assert found.lower(found.best(0.5), 0.5) > found.lower(scale * found.best(0.5), 0.5)
    assert found.best(2.0) == 0.0, "no step is sure to gain"
    assert found.lower(1.0, 0.5) > 0 and StepGain(0.1, 0.0, 0.2, 1.0, 2).lower(1.0, 0.5) == 0.0, "at c* = ½"
    assert StepGain(0.1, 0.0, 0.0, 1.0, 2).best(0.5) == math.inf


def test_the_unit_of_the_rewards_changes_no_length():
    moved, prompts = torch.tensor([0.2, -0.1, 0.4, 0.1]), torch.tensor([0, 0, 1, 1])
    weight, rewards = torch.zeros(4), torch.tensor([1.0, 0.0, 0.5, 0.0])
    one, other = (step_gain(moved, weight, 4 * k * rewards - k, prompts, -k) for k in (1.0, 5.0))
    assert other.gain == pytest.approx(5 * one.gain) and other.lower(1.0, 0.3) == pytest.approx(5 * one.lower(1.0, 0.3))
    assert other.best(0.3) == pytest.approx(one.best(0.3)) and one.best(0.3) > 0


def test_what_says_nothing():
    same = step_gain(
        torch.tensor([0.2, -0.1, 0.4, 0.1]), torch.zeros(4), torch.ones(4), torch.tensor([0, 0, 1, 1]), 0.0
    )
    assert (same.gain, same.error, same.informed, same.speaks) == (0.0, 0.0, 0, False) and same.fisher > 0
    still = step_gain(torch.zeros(4), torch.zeros(4), torch.tensor([1.0, 0, 1, 0]), torch.tensor([0, 0, 1, 1]), 0.0)
    assert (still.gain, still.error, still.fisher, still.informed, still.speaks) == (0.0, 0.0, 0.0, 2, False)
    lone = step_gain(
        torch.tensor([0.2, -0.1, 0.4, 0.1]),
        torch.zeros(4),
        torch.tensor([1.0, 0, 1, 1]),
        torch.tensor([0, 0, 1, 1]),
        0.0,
    )
    assert lone.error == pytest.approx(lone.gain) and not lone.speaks, "s = |G|, whatever it is"


@pytest.mark.parametrize(("prompts", "said"), [([0, 0, 0, 1], "smallest has 1 resp"), ([3, 3, 3, 3], "1 prompts")])
def test_prompts_that_cannot_be_used_are_refused(prompts, said):
    with pytest.raises(DataError, match=said):
        step_gain(torch.zeros(4), torch.zeros(4), torch.ones(4), torch.tensor(prompts), 0.0)


class Bandit:
    """Twelve prompts of six answers each: softmax policies and rewards, everything by enumeration."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.logits = self.random.normal(size=(12, 6))
        self.rewards = self.random.uniform(size=(12, 6)) * self.random.uniform(size=(12, 1))
        self.step = np.zeros((12, 6))
        before = self.policy(0)
        gradient = before * (self.rewards - (before * self.rewards).sum(1, keepdims=True))
        self.step = 4 * gradient / np.abs(gradient).max() + 0.3 * self.random.normal(size=(12, 6))

    def policy(self, scale):
        logits = self.logits + scale * self.step
        weights = np.exp(logits - logits.max(1, keepdims=True))
        return weights / weights.sum(1, keepdims=True)

    def value(self, scale):
        return float((self.policy(scale) * self.rewards).sum(1).mean())

    def gain(self, scale):
        return self.value(scale) - self.value(0)

    def draw(self, scale, prompts, responses, sampler=None):
        """What a trainer would see of the step `scale` · step: drawn by `sampler`, else by the policy before it."""
        drawn_by = self.policy(0) if sampler is None else sampler
        chosen = np.repeat(self.random.integers(12, size=prompts), responses)
        answers = (self.random.uniform(size=(len(chosen), 1)) > drawn_by[chosen].cumsum(1)).sum(1).clip(max=5)
        moved = np.log(self.policy(scale) / self.policy(0))[chosen, answers]
        weight = np.log(self.policy(0) / drawn_by)[chosen, answers]
        groups = np.repeat(np.arange(prompts), responses)
        columns = (moved, weight, self.rewards[chosen, answers], groups)
        return step_gain(*(torch.from_numpy(column) for column in columns), 0.0)


@pytest.mark.parametrize("stale", [False, True])
def test_its_mean_is_the_slope_and_the_fisher_form_of_the_step(stale):
    """Against finite differences of the true value, and twice the KL divergence, of a short step."""
    bandit, short = Bandit(1), 1e-3
    sampler = 0.5 * bandit.policy(0) + 0.5 / 6 if stale else None
    found = bandit.draw(short, 100_000, 4, sampler)
    slope = bandit.gain(1e-6) / 1e-6
    assert abs(found.gain / short - slope) < 4 * found.error / short and found.error / short < slope / 50
    before, after = bandit.policy(0), bandit.policy(short)
    divergence = (before * np.log(before / after)).sum(1)
    assert found.fisher == pytest.approx(2 * divergence.mean(), rel=0.02)
    others = ((before if sampler is None else sampler) * bandit.rewards).sum(1)  # what b estimates
    assert found.cost == pytest.approx(2 * (others * divergence).mean(), rel=0.02)


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0])
def test_the_true_gain_is_above_the_limit_as_often_as_the_limit_says(scale):
    """z = 1.645: above it in 95 % of the draws or more, of steps that gain, and of the same steps backwards."""
    false = 0
    for seed in range(6):
        for sign in (1, -1):
            bandit = Bandit(seed)
            bandit.step = sign * bandit.step
            true = bandit.gain(scale)
            false += sum(bandit.draw(scale, 40, 4).lower(1.0, 1.645) > true for _ in range(25))
    assert false <= 0.05 * 300 + 2.5 * math.sqrt(0.05 * 0.95 * 300)


def test_first_order_alone_would_be_false():
    """What H / 2 is there for: a step that makes each prompt's worst answer e² times as likely, before it is one."""
    bandit = Bandit(3)
    bandit.step = 2.0 * (bandit.rewards == bandit.rewards.min(1, keepdims=True))
    true, drawn = bandit.gain(1.0), [bandit.draw(1.0, 500, 8) for _ in range(20)]
    assert all(found.gain - 1.645 * found.error > true for found in drawn)
    assert sum(found.lower(1.0, 1.645) > true for found in drawn) <= 3


def test_a_policy_with_nothing_to_lose_pays_for_no_length():
    zero = step_gain(torch.ones(4), torch.zeros(4), torch.tensor([-1.0, -1, -1, -1]), torch.tensor([0, 0, 1, 1]), -1.0)
    assert zero.cost == 0.0 and zero.fisher == 1.0

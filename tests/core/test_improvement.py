"""The value of a policy on rollouts of another, and a bet that an update does harm: by hand, by sums, by count."""

import pytest
import torch

from holdfast.core.betting import STAKES, EProcess
from holdfast.core.improvement import clipped_gain, clipped_value
from holdfast.errors import ConfigError


def test_value_by_hand():
    # W = 3 · 2 = 6 and R = .75: 4.5, and .75 · 4 = 3 at a cap of 4. W = 0 where the policy cannot write a token.
    ratio, reward = torch.tensor([[3.0, 2.0]]).log(), torch.tensor([0.75])
    assert clipped_value(ratio, reward).item() == pytest.approx(4.5)
    assert clipped_value(ratio, reward, 4.0).item() == pytest.approx(3)
    assert clipped_value(torch.tensor([[0.0, -torch.inf]]), reward).item() == 0
    assert clipped_gain(ratio, reward).item() == pytest.approx(4.5 - 0.75)
    with pytest.raises(ConfigError, match=r"cap is 1\.0, allowed is above 1"):
        clipped_value(ratio, reward, 1.0)


@pytest.mark.parametrize("cap", [1.1, 3.0, 10.0, 1e9])
@pytest.mark.parametrize("truncated", [False, True])
def test_its_mean_is_at_most_the_true_value(cap, truncated):
    """E_p by summing over all arms, for 2,000 pairs of policies; p may lack an arm that the other draws."""
    draw = torch.Generator().manual_seed(1)
    rollout, policy = torch.softmax(2 * torch.randn(2, 2000, 5, generator=draw, dtype=torch.float64), -1)
    reward = torch.rand(2000, 5, generator=draw, dtype=torch.float64)
    if truncated:
        rollout = torch.cat([torch.zeros(2000, 1).double(), rollout[:, 1:] / rollout[:, 1:].sum(-1, keepdim=True)], -1)
    ratio = (policy / torch.where(rollout > 0, rollout, 1.0)).log()
    found = clipped_value(ratio.reshape(-1, 1), reward.flatten(), cap).reshape(rollout.shape)
    mean, value = (rollout * found).sum(-1), (policy * reward).sum(-1)
    assert bool((mean <= value + 1e-12).all())
    if cap == 1e9 and not truncated:
        torch.testing.assert_close(mean, value)  # nothing is given away where nothing is cut


# The chance of a right answer to prompts of three kinds, drawn with these chances; an engine that lags behind.
KINDS = torch.tensor([0.3, 0.4, 0.3], dtype=torch.float64)
BEFORE = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
LAGGING = torch.tensor([0.05, 0.3, 0.8], dtype=torch.float64)


def braked(rollout, before, after, *, prompts=16, group=4, runs=2000, seed=2):
    """The share of simulated steps in which held-out prompts certify harm at 95 %, answered by `rollout` and `after`.

    Answers are right or wrong; importance weights are those of `before` to `rollout`, the same for all right answers.
    """
    draw = torch.Generator().manual_seed(seed)
    kind = torch.multinomial(KINDS.expand(runs, -1), prompts, replacement=True, generator=draw)[..., None]
    was, now = (
        (torch.rand(runs, prompts, group, generator=draw).double() < policy[kind]).double()
        for policy in (rollout, after)
    )
    ratio = torch.where(was > 0, (before / rollout)[kind], ((1 - before) / (1 - rollout))[kind]).log()
    value = clipped_value(ratio.reshape(-1, 1), was.flatten()).reshape(was.shape)
    units = (value - now).mean(-1)
    wealth = (
        (1 + torch.tensor(STAKES, dtype=torch.float64) * units[..., None]).cumprod(1).mean(-1)
    )  # E_n, prompt by prompt
    assert EProcess(0.95).update(units[0]).highest == pytest.approx(float(wealth[0].max()))
    return float((wealth.amax(-1) >= 20).double().mean())


@pytest.mark.parametrize("rollout", [BEFORE, LAGGING], ids=["up to date", "behind"])
@pytest.mark.parametrize("prompts", [16, 256])
@pytest.mark.parametrize(
    ("after", "loss"),
    [
        ([0.1, 0.5, 0.9], 0.0),  # the same policy
        ([0.9, 0.5, 0.1], 0.0),  # another, to no gain
        ([1.0, 0.05, 0.6], 0.0),
        ([0.2, 0.6, 0.95], -0.085),
    ],
)
def test_a_step_that_does_no_harm_is_braked_in_one_of_twenty_at_most(rollout, prompts, after, loss):
    after = torch.tensor(after, dtype=torch.float64)
    assert float(((BEFORE - after) * KINDS).sum()) == pytest.approx(loss)
    assert braked(rollout, BEFORE, after, prompts=prompts) <= 0.05


@pytest.mark.parametrize("rollout", [BEFORE, LAGGING], ids=["up to date", "behind"])
def test_a_step_that_does_much_harm_is_braked(rollout):
    assert braked(rollout, BEFORE, torch.zeros(3, dtype=torch.float64), prompts=24, runs=200) > 0.9
    assert braked(rollout, BEFORE, 0.5 * BEFORE, prompts=64, runs=200) > 0.9


def test_the_policy_before_counts_not_the_one_that_sampled():
    """The engine is behind: against it this step gains .05, and it loses .1 of what training had reached."""
    before, after = (torch.tensor([p, p, p], dtype=torch.float64) for p in (0.6, 0.5))
    behind = torch.tensor([0.45, 0.45, 0.45], dtype=torch.float64)
    assert braked(behind, before, after, prompts=300, runs=100) > 0.9
    assert braked(behind, behind, after, prompts=300, runs=100) <= 0.05

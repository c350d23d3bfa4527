"""The laws of entropy on a bandit: fixed points by hand, orders of the covariance law, what each control costs."""

import math

import pytest
import torch

from holdfast.errors import ConfigError
from holdfast.lab.bandit import (
    CONTROLS,
    bonus_gap,
    covariance,
    entropy,
    entropy_change,
    fit_reward_law,
    ladder_arms,
    train,
)

ARMS = ladder_arms(10)


def test_ladder_and_gap_by_hand():
    assert ladder_arms(3).tolist() == [1.0, 0.9, 0.0]
    # two arms worth 1 and .9 at α = .1: odds e, so π = (e, 1)/(1 + e) and the gap is .1/(1 + e) = .0268941
    assert bonus_gap(ladder_arms(2), 0.1) == pytest.approx(0.1 / (1 + math.e))
    gaps = [bonus_gap(ladder_arms(50), alpha) for alpha in (0.02, 0.1, 0.3)]
    assert gaps == pytest.approx([0.0012276, 0.1302734, 0.3174817], rel=1e-4)
    assert all(gap <= alpha * math.log(50) for gap, alpha in zip(gaps, (0.02, 0.1, 0.3), strict=True))


def test_covariance_and_entropy_by_hand():
    pi = torch.tensor([0.25, 0.75], dtype=torch.float64)
    x, y = torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([2.0, 6.0], dtype=torch.float64)
    # E xy = .5 + 13.5 = 14, E x = 2.5, E y = 5: 14 - 12.5 = 1.5
    assert covariance(pi, x, y).item() == pytest.approx(1.5)
    assert entropy(pi.log()).item() == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))


def test_entropy_law_is_right_to_its_order():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    direction = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    errors = []
    for size in (1e-2, 1e-3):
        change = entropy_change(logits, size * direction)
        errors.append(
            ((change.actual - change.first_order).abs().mean(), (change.actual - change.second_order).abs().mean())
        )
    # a tenth of the step leaves a hundredth of the first-order error and a thousandth of the second-order one
    assert (errors[0][0] / errors[1][0]).item() == pytest.approx(100, rel=0.1)
    assert (errors[0][1] / errors[1][1]).item() == pytest.approx(1000, rel=0.1)
    # autograd agrees: dH/dz = -π (log π + H)
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(entropy(leaf).sum(), leaf)
    torch.testing.assert_close(entropy_change(logits, direction).first_order, (gradient * direction).sum(-1))


def test_a_constant_bonus_ends_at_its_fixed_point_and_the_others_do_not():
    final = {control: train(ARMS, control, steps=2000) for control in CONTROLS}
    assert final["bonus"].gap == pytest.approx(bonus_gap(ARMS, 0.1), rel=0.05)
    for control in ("none", "annealed", "kl_cov"):
        assert final[control].gap < 1e-3, control
    assert final["clip_cov"].gap < 0.3 * final["bonus"].gap
    assert all(run.reward[0].item() == pytest.approx(ARMS.mean().item()) for run in final.values())
    assert all(run.entropy[0].item() == pytest.approx(math.log(10)) for run in final.values())


def test_controls_keep_entropy_longer_than_no_control():
    """Cumulative entropy until the end: what exploration each control buys."""
    spent = {control: train(ARMS, control, steps=500).entropy.mean().item() for control in CONTROLS}
    assert min(spent, key=spent.get) == "none"
    assert spent["bonus"] > spent["annealed"] > spent["none"]
    assert spent["kl_cov"] > 1.5 * spent["none"]


def test_one_step_of_each_control_by_hand():
    # two arms worth 1 and .9, uniform start: J = .95, A = ±.05; policy gradient π A = ±.025; log π + H = 0
    values = ladder_arms(2)
    for control in ("none", "bonus", "annealed"):
        run = train(values, control, steps=1, rate=2.0)
        assert run.reward[1].item() == pytest.approx(0.9 + 0.1 / (1 + math.exp(-0.1))), control
    # clip_cov with share ½ drops one whole arm (both scores are 0: the first): gain (0, -.025) minus π times its sum
    clipped = train(values, "clip_cov", steps=1, rate=2.0, share=0.5)
    assert clipped.reward[1].item() == pytest.approx(0.9 + 0.1 / (1 + math.exp(-0.05)))
    # with every arm chosen nothing moves, with none the gradient is free
    assert train(ARMS, "clip_cov", steps=5, share=1.0).reward.tolist() == pytest.approx([ARMS.mean().item()] * 6)
    free = train(ARMS, "none", steps=5).reward.tolist()
    assert train(ARMS, "clip_cov", steps=5, share=1e-12).reward.tolist() == pytest.approx(free)
    free = train(values, "kl_cov", steps=1, rate=2.0, beta=0.0).reward[1]
    held = train(values, "kl_cov", steps=1, rate=2.0, share=1.0, beta=5.0).reward[1]
    assert free.item() == pytest.approx(0.9 + 0.1 / (1 + math.exp(-0.1)), rel=1e-4)
    assert 0.95 < held.item() < 0.95 + 0.4 * (free.item() - 0.95)


@pytest.mark.parametrize(("control", "schedule"), [("none", 0.0), ("bonus", 1.0), ("annealed", None)])
def test_steps_follow_the_gradient_of_the_objective(control, schedule):
    """dz = η ∇(J + α_k H) by autograd, α_k = α/√(1 + k/10) for the annealed bonus."""
    logits = torch.zeros_like(ARMS)
    rewards = []
    for k in range(30):
        weight = 0.3 * ((1 + k / 10) ** -0.5 if schedule is None else schedule)
        leaf = logits.clone().requires_grad_()
        reward = (leaf.softmax(-1) * ARMS).sum()
        rewards.append(reward.item())
        (gradient,) = torch.autograd.grad(reward + weight * entropy(leaf), leaf)
        logits = logits + 5.0 * gradient
    assert train(ARMS, control, steps=29, rate=5.0, alpha=0.3).reward.tolist() == pytest.approx(rewards)


def test_clip_cov_drops_the_largest_scores_from_the_gradient():
    """dz = η ∇ Σ_a π_a A_a log π_a over what is kept, by autograd, the arms taken one by one in a plain loop."""
    logits = torch.zeros_like(ARMS)
    rewards = []
    for _ in range(40):
        leaf = logits.clone().requires_grad_()
        log_pi = leaf.log_softmax(-1)
        pi = log_pi.detach().exp()
        advantage = ARMS - (pi * ARMS).sum()
        rewards.append((pi * ARMS).sum().item())
        score = (log_pi.detach() - (pi * log_pi.detach()).sum()) * advantage
        left, kept = 0.3, torch.ones_like(pi)
        for arm in score.argsort(descending=True).tolist():
            dropped = min(left, pi[arm].item())
            kept[arm] = 1 - dropped / pi[arm]
            left -= dropped
        (gradient,) = torch.autograd.grad((pi * kept * advantage * log_pi).sum(), leaf)
        logits = logits + 3.0 * gradient
    assert train(ARMS, "clip_cov", steps=39, rate=3.0, share=0.3).reward.tolist() == pytest.approx(rewards)


def test_reward_law_fit():
    entropies = torch.linspace(0, 2, 50, dtype=torch.float64)
    law = fit_reward_law(entropies, 0.9 - 0.05 * entropies.exp())
    assert (law.a, law.b, law.ceiling, law.r2) == pytest.approx((0.05, 0.9, 0.85, 1.0))
    run = train(ladder_arms(50), "none", steps=2000)
    assert fit_reward_law(run.entropy, run.reward).r2 > 0.98
    noisy = fit_reward_law(entropies, torch.sin(20 * entropies))
    assert noisy.r2 < 0.2


def test_impossible_bandits_are_refused():
    with pytest.raises(ConfigError, match="arms is 1"):
        ladder_arms(1)
    with pytest.raises(ConfigError, match="alpha is 0"):
        bonus_gap(ARMS, 0.0)
    with pytest.raises(ConfigError, match="unknown control 'klcov': did you mean kl_cov"):
        train(ARMS, "klcov")
    with pytest.raises(ConfigError, match=r"beta is 90\.0, allowed is below"):
        train(ARMS, "kl_cov", beta=90.0)
    with pytest.raises(ConfigError, match="2 points"):
        fit_reward_law(torch.zeros(2), torch.zeros(2))

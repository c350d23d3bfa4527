"""Weights, penalties, advantages and schedules against hand numbers and naive restatements."""

from dataclasses import replace
from math import exp, log, sqrt

import pytest
import torch

from cases import gradients, random_batch
from holdfast import Batch, ConfigError, DataError, Objective, TokenStats, preset
from holdfast.objectives.parts.advantages import Gae, Group, Raw, Teacher, Whiten
from holdfast.objectives.parts.masks import TrmMax
from holdfast.objectives.parts.penalties import EntropyBonus, Kl, KlCov
from holdfast.objectives.parts.ratio_masks import RatioBand
from holdfast.objectives.parts.schedule import Anneal
from holdfast.objectives.parts.terms import Terms
from holdfast.objectives.parts.token_masks import Dppo
from holdfast.objectives.parts.weights import FutureKl, ImportanceWeight, Labels

F = torch.float64
ONES = torch.ones(4, 3, dtype=torch.bool)
GROUPS = torch.tensor([7, 7, 3, 3])
REWARDS = torch.tensor([1.0, 0.0, 0.5, 0.5], dtype=F)


def test_weights_by_hand():
    # old/rollout = 4, .25, 1 in one sequence; product 1, geometric mean 1.
    q = torch.tensor([[4.0, 0.25, 1.0]], dtype=F)
    mask = torch.ones_like(q, dtype=torch.bool)
    batch = Batch(
        advantages=torch.ones(1, dtype=F), response_mask=mask, old_logprobs=q.log() - 3, rollout_logprobs=q * 0 - 3
    )
    terms = Terms.of(batch, TokenStats(logprobs=q.log() - 3 + log(2.0)))

    def weight(**settings):
        part = ImportanceWeight(**settings)
        return part.weight(terms, part.prepare(terms, 0)).flatten().tolist()

    assert weight(high=2.0) == pytest.approx([2, 0.25, 1])
    assert weight(low=0.5, high=2.0) == pytest.approx([2, 0.5, 1])
    assert weight(low=0.5, high=2.0, outside="zero") == pytest.approx([0, 0, 1])
    assert weight(high=4.0, outside="zero") == pytest.approx([4, 0.25, 1]), "the cap itself is inside"
    assert weight(high=None, over="sequence_sum") == pytest.approx([1])
    assert weight(high=None, over="sequence_sum", numerator="current") == pytest.approx([8])
    assert weight(high=None, over="sequence_mean", numerator="current") == pytest.approx([2])
    assert weight(high=2.0, batch_normalize=True) == pytest.approx([2 / (3.25 / 3), 0.25 / (3.25 / 3), 1 / (3.25 / 3)])


def test_the_product_over_a_sequence_shrinks_with_length():
    """Log-noise .03, mean of the product zeroed above 3: .90 at 512 tokens, .35 at 4096 (the sheet's figures)."""
    g = torch.Generator().manual_seed(0)
    for length, expected in ((512, 0.90), (4096, 0.35)):
        noise = 0.03 * torch.randn(2000, length, generator=g)
        # E[w] = 1 before the cap: log-ratios of a normal with mean −σ²/2.
        rollout = torch.full((2000, length), -1.0)
        batch = Batch(
            advantages=torch.ones(2000),
            response_mask=torch.ones(2000, length, dtype=torch.bool),
            old_logprobs=rollout + noise - 0.03**2 / 2,
            rollout_logprobs=rollout,
        )
        part = ImportanceWeight(high=3.0, over="sequence_sum", outside="zero")
        mean = part.weight(Terms.of(batch, TokenStats(logprobs=rollout)), None).mean().item()
        assert mean == pytest.approx(expected, abs=0.07)


@pytest.mark.parametrize(
    ("estimator", "value", "slope"),
    [("k1", log(2), 1.0), ("k2", log(2) ** 2 / 2, log(2)), ("k3", 0.5 - 1 + log(2), 0.5)],
)
def test_kl_penalties_by_hand(estimator, value, slope):
    """θ/ref = 2: k1 log 2, k2 (log 2)²/2, k3 ref/θ − 1 + log 2; slopes in log θ 1, log 2 and 1 − ref/θ."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    batch = Batch(
        advantages=torch.zeros(1, dtype=F),
        response_mask=mask,
        ref_logprobs=torch.tensor([[log(0.2)]], dtype=F),
        old_logprobs=torch.tensor([[log(0.1)]], dtype=F),
    )
    stats = TokenStats(logprobs=torch.tensor([[log(0.4)]], dtype=F), entropy=torch.zeros(1, 1, dtype=F))
    loss, gradient, _ = gradients(Objective(penalties=(Kl(0.5, estimator),)), batch, stats)
    assert loss.item() == pytest.approx(0.5 * value)
    assert gradient.item() == pytest.approx(0.5 * slope)
    weighted, gradient, _ = gradients(Objective(penalties=(Kl(0.5, estimator, ratio_weighted=True),)), batch, stats)
    assert weighted.item() == pytest.approx(0.5 * 4 * value), "θ/old = 4"
    assert gradient.item() == pytest.approx(0.5 * 4 * (value + slope))


def test_entropy_bonus_annealed_and_tracking():
    batch, stats = random_batch()
    assert stats.entropy is not None
    mean = stats.entropy[batch.response_mask].mean().item()
    quiet = preset("entropy_bonus").with_(penalties=())

    def bonus(part, step=0):
        objective = replace(quiet, penalties=(part,))
        plan = objective.prepare(batch, stats, step=step)
        loss, _, gradient = gradients(objective, batch, stats, plan)
        # The bonus is linear in the entropies, so its gradient times their mean is the bonus itself.
        assert gradient.sum().item() * mean == pytest.approx(loss.item() - base)
        return (loss - base).item()

    base = gradients(quiet, batch, stats)[0].item()
    assert bonus(EntropyBonus(0.1)) == pytest.approx(-0.1 * mean)
    annealed = EntropyBonus(0.1, Anneal("inverse_sqrt", 10.0))
    assert bonus(annealed, step=30) == pytest.approx(-0.1 * mean / sqrt(1 + 30 / 10))
    assert bonus(EntropyBonus(0.1, target=mean + 0.01)) == pytest.approx(-0.1 * mean)
    assert bonus(EntropyBonus(0.1, target=mean - 0.01)) == 0


def test_adaptive_entropy_moves_towards_its_target():
    objective = preset("adaptive_entropy", target=0.2, adapt=0.05, alpha_max=0.08)
    for entropy, alpha in ((0.1, 0.05), (0.19, 0.08), (0.3, 0.03), (0.3, 0.0)):
        objective = objective.after_step({"entropy": torch.tensor(entropy)})
        assert objective.penalties[0].alpha == pytest.approx(alpha)
    assert preset("entropy_bonus").after_step({"entropy": 0.0}) == preset("entropy_bonus")


def test_kl_cov_is_silent_on_policy_in_its_smooth_forms_and_pulls_back_off_policy():
    batch, stats = random_batch(8, 12)
    still = replace(batch, old_logprobs=stats.logprobs)
    for form in ("k2", "k3"):
        objective = Objective(penalties=(KlCov(0.3, form=form),))
        plain, _, _ = gradients(Objective(), still, stats)
        loss, gradient, _ = gradients(objective, still, stats)
        torch.testing.assert_close(loss, plain)
        torch.testing.assert_close(gradient, gradients(Objective(), still, stats)[1])
    assert batch.old_logprobs is not None
    moved = replace(batch, old_logprobs=stats.logprobs - 0.5)
    for form, slope in (("abs", 1.0), ("k2", 0.5), ("k3", exp(0.5) - 1)):
        objective = Objective(penalties=(KlCov(1.0, beta=2.0, form=form),))
        pull = gradients(objective, moved, stats)[1] - gradients(Objective(), moved, stats)[1]
        expected = 2.0 * slope / int(batch.response_mask.sum())
        torch.testing.assert_close(pull[batch.response_mask], torch.full_like(pull[batch.response_mask], expected))


@pytest.mark.parametrize("form", ["abs", "k2", "k3"])
def test_kl_cov_acts_with_one_step_per_batch_once_it_is_taken_to_the_rollout_policy(form):
    """Its pull is β D'(log θ − log μ)/K on every chosen token; where θ = old only μ = rollout leaves any."""
    batch, stats = random_batch(8, 12)
    batch = replace(batch, old_logprobs=stats.logprobs, rollout_logprobs=stats.logprobs - 0.5)
    slope = {"abs": 1.0, "k2": 0.5, "k3": exp(0.5) - 1}[form]
    mask, expected = batch.response_mask, 2.0 * slope / int(batch.response_mask.sum())
    for policy, denominator, acts in (
        ("old", "old", False), ("denominator", "old", False), ("old", "rollout", False),
        ("rollout", "old", True), ("denominator", "rollout", True),
    ):  # fmt: skip
        part = KlCov(1.0, beta=2.0, form=form, policy=policy)
        objective = Objective(denominator=denominator, penalties=(part,))
        pull = gradients(objective, batch, stats)[1] - gradients(objective.with_(penalties=()), batch, stats)[1]
        torch.testing.assert_close(pull[mask], torch.full_like(pull[mask], expected if acts else 0.0))
        assert (part in objective.idle_where_old) is not acts
        assert ("rollout_logprobs" in objective.needs) is ("rollout" in (policy, denominator))


@pytest.mark.parametrize(
    ("part", "acts"),
    [
        (TrmMax(policy="old"), False),
        (TrmMax(detector="kl_exact", policy="old"), True),  # exact divergences are from the rollout policy
        (Dppo(policy="old"), False),
        (RatioBand(policy="old"), False),
        (Kl(0.1, "k1", "old"), True),  # β ∇log π
        (Kl(0.1, "k3", "old", ratio_weighted=True), False),
        (Kl(0.1, "k2", "ref"), True),
    ],
)
def test_parts_on_the_old_policy_are_idle_where_it_is_the_current_one(part, acts):
    batch, stats = random_batch(16, 12)
    batch = replace(batch, old_logprobs=stats.logprobs)
    where = "penalties" if isinstance(part, Kl) else "masks"
    if isinstance(part, TrmMax):
        part = replace(part, delta=0.15)
    objective = Objective(**{where: (part,)})
    same = torch.allclose(gradients(objective, batch, stats)[1], gradients(Objective(), batch, stats)[1], atol=1e-15)
    assert (part not in objective.idle_where_old) is acts is not same


def test_kl_cov_selects_the_largest_covariances():
    batch, stats = random_batch(8, 12)
    mask = batch.response_mask
    terms = Terms.of(batch, stats)
    chosen = KlCov(0.1).prepare(terms, 0)
    logprobs, advantages = terms.logprobs, terms.advantages
    covariance = (logprobs - logprobs[mask].mean()) * (advantages - advantages[mask].mean())
    count = int(0.1 * mask.sum())
    assert chosen.sum() == count
    assert covariance[chosen].min() >= covariance[mask & ~chosen].max()


@pytest.mark.parametrize(
    ("shape", "step", "factor"),
    [
        ("constant", 99, 1.0),
        ("inverse_sqrt", 300, 0.5),
        ("linear", 25, 0.75),
        ("linear", 200, 0.0),
        ("cosine", 50, 0.5),
        ("cosine", 400, 0.0),
    ],
)
def test_schedules(shape, step, factor):
    assert Anneal(shape, 100.0).factor(step) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [
        # (1, 0): mean .5, sample std √.5; the second group is all equal: no advantage.
        (Group(epsilon=0.0), [0.5 / sqrt(0.5), -0.5 / sqrt(0.5), 0, 0]),
        (Group(), [0.5 / (sqrt(0.5) + 1e-4), -0.5 / (sqrt(0.5) + 1e-4), 0, 0]),
        (Group(scale="none"), [0.5, -0.5, 0, 0]),
        (Group("leave_one_out", "none"), [1.0, -1.0, 0, 0]),
        (Group(scale="mean"), [1.0, -1.0, 0, 0]),
        # the step's rewards 1, 0, .5, .5 have sample std √(.5/3)
        (Group(scale="batch_std", epsilon=0.0), [0.5 / sqrt(0.5 / 3), -0.5 / sqrt(0.5 / 3), 0, 0]),
        # the mean of the step is .5; the second group is at it
        (Group("step_mean", "none"), [0.5, -0.5, 0, 0]),
        (Teacher(), [0.5, -0.5, 0, 0]),
        (Group(scale="sign"), [1.0, -1.0, 0, 0]),
        (Raw(0.25), [0.75, -0.25, 0.25, 0.25]),
    ],
)
def test_sequence_advantages(advantage, expected):
    assert advantage.estimate(REWARDS, GROUPS, ONES).tolist() == pytest.approx(expected)


def test_equal_rewards_give_exactly_nothing_however_they_round():
    rewards = torch.full((6,), 0.1)
    groups = torch.zeros(6, dtype=torch.long)
    for scale in ("std", "none", "mean"):
        assert not Group(scale=scale, epsilon=0.0).estimate(rewards, groups, torch.ones(6, 2, dtype=torch.bool)).any()


def test_a_group_of_one_and_a_group_of_failures():
    alone = Group("leave_one_out", "none").estimate(torch.ones(1), torch.zeros(1, dtype=torch.long), ONES[:1])
    assert alone.tolist() == [0.0]
    failures = Group(scale="mean").estimate(torch.zeros(3), torch.zeros(3, dtype=torch.long), ONES[:3])
    assert failures.tolist() == [0.0, 0.0, 0.0]


def test_whitening_weighs_every_token_of_the_step():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    rewards, groups = torch.tensor([1.0, 0.0], dtype=F), torch.tensor([0, 1])
    out = Whiten(epsilon=0.0).estimate(rewards, groups, mask)
    # values 1, 1, 1, 0: mean .75, sample std .5
    assert out.tolist() == [pytest.approx([0.5, 0.5, 0.5]), pytest.approx([-1.5, 0, 0])]
    discounted = Whiten(gamma=0.5, epsilon=0.0).estimate(rewards, groups, mask)
    raw = torch.tensor([0.25, 0.5, 1.0, 0.0], dtype=F)
    torch.testing.assert_close(discounted[mask], (raw - raw.mean()) / raw.std())


def test_gae_steps_over_tool_tokens():
    """γ = .9, λ = .8, V = .5, (tool), .25; R = 1: δ_2 = 1 − .25, δ_1 = .9·.25 − .5 = −.275, A_1 = δ_1 + .72 δ_2."""
    values = torch.tensor([[0.5, 99.0, 0.25]], dtype=F)
    mask = torch.tensor([[True, False, True]])
    out = Gae(0.9, 0.8, whitened=False).estimate(torch.ones(1, dtype=F), torch.zeros(1, dtype=torch.long), mask, values)
    assert out.tolist() == [pytest.approx([-0.275 + 0.72 * 0.75, 0.0, 0.75])]
    with pytest.raises(DataError, match="needs values"):
        Gae().estimate(torch.ones(1, dtype=F), torch.zeros(1, dtype=torch.long), mask)


def test_gae_with_lambda_one_is_the_return_minus_the_value():
    batch, _ = random_batch(6, 9)
    values = torch.randn(6, 9, dtype=F, generator=torch.Generator().manual_seed(1))
    rewards = torch.arange(6, dtype=F)
    out = Gae(1.0, 1.0, whitened=False).estimate(rewards, torch.arange(6), batch.response_mask, values)
    expected = torch.where(batch.response_mask, rewards[:, None] - values, 0)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ImportanceWeight(2.0, 1.0), "ImportanceWeight.high = 1.0: must be above low = 2"),
        (lambda: Kl(-1.0), "Kl.coefficient = -1.0"),
        (lambda: EntropyBonus(2.0), r"EntropyBonus.alpha = 2.0: must be in \[0, alpha_max = 1\]"),
        (lambda: EntropyBonus(adapt=0.1), "EntropyBonus.adapt = 0.1: must be 0 without a target"),
        (lambda: KlCov(share=0.0), "KlCov.share = 0.0"),
        (lambda: Anneal("linear", 0.0), "Anneal.steps = 0.0"),
        (lambda: Whiten(gamma=0.0), "Whiten.gamma = 0.0"),
        (lambda: Gae(lam=1.5), "Gae.lam = 1.5"),
    ],
)
def test_impossible_values_are_refused(build, words):
    with pytest.raises(ConfigError, match=words):
        build()


def test_a_step_mean_gives_single_rollouts_an_advantage():
    rewards, alone = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=F), torch.arange(4)
    assert Group("step_mean", "none").estimate(rewards, alone, ONES).tolist() == [0.75, -0.25, -0.25, -0.25]
    assert not Group(scale="none").estimate(rewards, alone, ONES).any()


def test_a_teacher_is_the_advantage_and_rewards_may_be_mixed_in():
    batch, stats = random_batch()
    assert batch.teacher_logprobs is not None
    terms = Terms.of(batch, stats)
    distance = torch.where(batch.response_mask, batch.teacher_logprobs - stats.logprobs, 0)
    torch.testing.assert_close(Teacher().in_loss(terms).advantages, distance)
    mixed = Teacher(0.5).in_loss(terms)
    torch.testing.assert_close(mixed.advantages, distance + 0.5 * terms.advantages)
    assert torch.equal(mixed.positive, mixed.advantages > 0)
    with pytest.raises(DataError, match=r"needs Batch.teacher_logprobs.*that the teacher policy gave"):
        preset("opd")(replace(batch, teacher_logprobs=None), stats)
    with pytest.raises(ConfigError, match=r"Teacher.reward = -1.0: must be at least 0"):
        Teacher(-1.0)


def test_distillation_descends_the_reverse_kl_in_expectation():
    """Over all tokens of a vocabulary, weighted by the student: the gradient of KL(student‖teacher)."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(5, generator=g, dtype=F, requires_grad=True)
    teacher = torch.randn(5, generator=g, dtype=F).log_softmax(-1)
    student = logits.log_softmax(-1)
    (kl,) = torch.autograd.grad((student.exp() * (student - teacher)).sum(), logits, retain_graph=True)
    rows = student[:, None]
    batch = Batch(
        advantages=torch.zeros(5, dtype=F), response_mask=torch.ones(5, 1, dtype=torch.bool),
        rollout_logprobs=rows.detach(), teacher_logprobs=teacher[:, None],
    )  # fmt: skip
    weighted = torch.zeros(5, dtype=F)
    for token in range(5):
        loss = preset("opd")(batch.select(slice(token, token + 1)), TokenStats(logprobs=rows[token : token + 1])).loss
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        weighted += student.detach().exp()[token] * gradient
    torch.testing.assert_close(weighted, kl)


@pytest.mark.parametrize("tokens", [1, 2, 7, 16, 33])
@pytest.mark.parametrize("safety", [None, 1.2])
def test_future_kl_against_a_loop(tokens, safety):
    batch, stats = random_batch(6, tokens, seed=tokens, staleness=0.6)
    terms = Terms.of(batch, stats)
    part = FutureKl(3.0, 0.7, 1.4, safety)
    found, d = part.weight(terms, None), terms.log_ratio("old")
    for row in range(6):
        places = terms.mask[row].nonzero().flatten().tolist()
        for rank, place in enumerate(places):
            later = sum(2 ** (-(k - rank) / 3.0) * float(d[row, s]) for k, s in enumerate(places) if k >= rank)
            expected = min(1.4, max(0.7, exp(later)))
            if safety and batch.advantages[row] < 0 and float(d[row, place].exp()) > safety:
                expected = min(1.0, max(0.8, expected))
            assert float(found[row, place]) == pytest.approx(expected, rel=1e-12)
    followed = Terms.of(batch, stats, "rollout")
    assert torch.equal(part.weight(followed, None), replace(part, policy="rollout").weight(terms, None))
    assert not torch.equal(part.weight(followed, None), found)


def test_the_optimal_token_baseline_by_hand():
    # Rewards 1 and 0 of one prompt; score norms .5, 1 and 1.5, 1, 2, so W = .5, 1.5 and 1.5, 2.5, 4.5.
    # B = .5/2 = .25 and 1.5/4 = .375; at the third place the second response is alone. The other prompt is alone.
    mask = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    norms = torch.tensor([[0.5, 1.0, 9.0], [1.5, 1.0, 2.0], [1.0, 9.0, 9.0]], dtype=F)
    rewards = torch.tensor([1.0, 0.0, 0.5], dtype=F)
    found = preset("otb").estimate_advantages(rewards, torch.tensor([4, 4, 5]), mask, score_norms=norms)
    expected = torch.tensor([[0.75, 0.625, 0.0], [-0.25, -0.375, 0.0], [0.5, 0.0, 0.0]], dtype=F)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)
    with pytest.raises(DataError, match=r"needs 1 − 2p \+ Σp² of every sampled token.*sum_p2"):
        preset("otb").estimate_advantages(rewards, torch.tensor([4, 4, 5]), mask)


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_labels_have_the_gradient_of_their_classification_loss(tau):
    """log(1 + Σ_bad e^(S/τ)) + log(1 + Σ_good e^(−S/τ)), by autograd, over groups with both labels."""
    batch, stats = random_batch(12, 6, seed=3)
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])
    labels = torch.tensor([1, -1, 1, -1, -1, 1, 1, 1, 1, -1, 1, -1], dtype=F)  # the third group has one label
    batch = replace(batch, advantages=labels, group_ids=groups)
    assert batch.old_logprobs is not None
    leaf = stats.logprobs.clone().requires_grad_()
    mean = torch.where(batch.response_mask, leaf - batch.old_logprobs, 0).sum(-1) / batch.response_mask.sum(-1)
    loss = torch.zeros((), dtype=F)
    for group in (0, 1, 3):
        own = groups == group
        good, bad = mean[own & (labels > 0)], mean[own & (labels < 0)]
        loss = loss + (1 + (bad / tau).exp().sum()).log() + (1 + (-good / tau).exp().sum()).log()
    (expected,) = torch.autograd.grad(loss / 4, leaf)
    _, found, _ = gradients(preset("real", tau=tau), batch, stats)
    torch.testing.assert_close(found, expected)
    assert not found[groups == 2].any()
    with pytest.raises(DataError, match=r"needs Batch.group_ids, which is None: number the prompts"):
        preset("real")(replace(batch, group_ids=None), stats)
    with pytest.raises(ConfigError, match=r"Labels.tau = 0.0"):
        Labels(0.0)

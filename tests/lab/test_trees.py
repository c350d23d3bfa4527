"""The enumeration against plain loops over every response, and against pairs worked by hand."""

import itertools
import math

import pytest
import torch

from holdfast.errors import ConfigError, DataError
from holdfast.lab.pairs import make_pairs, sharpen
from holdfast.lab.trees import (
    TreePair,
    error_weights,
    exact_error,
    log_ratios,
    measure,
    path_sums,
    select,
    worst_error,
)


def pairs(kind="random", count=3, vocabulary=3, horizon=3, seed=0, size=0.5, **options):
    return make_pairs(
        kind,
        torch.full((count,), size),
        vocabulary=vocabulary,
        horizon=horizon,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


def brute_force(pair: TreePair, row: int, rewards: list[float]) -> dict[str, float]:
    """Everything by its definition, one response at a time, in plain floats."""
    vocabulary, horizon = pair.vocabulary, pair.horizon

    def conditional(policy, prefix):
        context = 0
        for token in prefix:
            context = context * vocabulary + token
        return [math.exp(v) for v in policy[len(prefix)][row, context].tolist()]

    def divergences(prefix):
        p, q = conditional(pair.rollout, prefix), conditional(pair.current, prefix)
        kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        tv = sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2
        return kl, tv, sum((b - a) ** 2 / a for a, b in zip(p, q, strict=True))

    out = dict.fromkeys(("j_p", "j_q", "gain", "seq_kl", "seq_tv", "path", "martingale"), 0.0)
    for response, reward in zip(itertools.product(range(vocabulary), repeat=horizon), rewards, strict=True):
        p = q = 1.0
        ratios, tvs, martingale = [], [], 0.0
        for t in range(horizon):
            a = conditional(pair.rollout, response[:t])[response[t]]
            b = conditional(pair.current, response[:t])[response[t]]
            _, tv, chi2 = divergences(response[:t])
            martingale += chi2 * (q / p - 1) ** 2
            p, q = p * a, q * b
            ratios.append(b / a)
            tvs.append(tv)
        out["j_p"] += p * reward
        out["j_q"] += q * reward
        out["gain"] += p * reward * sum(r - 1 for r in ratios)
        out["seq_kl"] += p * math.log(p / q)
        out["seq_tv"] += abs(p - q) / 2
        out["path"] += p * sum(abs(ratios[t] - 1) * sum(tvs[t + 1 :]) for t in range(horizon))
        out["martingale"] += p * martingale
    contexts = [c for t in range(horizon) for c in itertools.product(range(vocabulary), repeat=t)]
    for i, name in enumerate(("kl_max", "tv_max", "chi2_max")):
        out[name] = max(divergences(c)[i] for c in contexts)
    return out


def test_enumeration_agrees_with_the_definitions():
    pair = pairs(size=0.7)
    reward = torch.rand(3, 27, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drift, error = measure(pair), exact_error(pair, reward)
    for row in range(3):
        expected = brute_force(pair, row, reward[row].tolist())
        assert error[row].item() == pytest.approx(expected["j_q"] - expected["j_p"] - expected["gain"], abs=1e-13)
        for name in ("kl_max", "tv_max", "chi2_max", "seq_kl", "seq_tv", "path", "martingale"):
            assert getattr(drift, name)[row].item() == pytest.approx(expected[name], rel=1e-10), name
    torch.testing.assert_close(drift.mean_kl.sum(-1), drift.seq_kl)
    assert (drift.mean_tv <= drift.tv_max[:, None]).all()
    assert (drift.mean_chi2 <= drift.chi2_max[:, None]).all()


def test_means_by_position_of_a_hand_tree():
    # token 0 with probability 3/4 leads to a context with p = (1/2, 1/2), q = (3/4, 1/4); elsewhere the policies agree
    half, tilted = torch.tensor([0.5, 0.5]).double().log(), torch.tensor([0.75, 0.25]).double().log()
    root = torch.tensor([[[0.75, 0.25]]], dtype=torch.float64).log()
    pair = TreePair((root, torch.stack([half, half])[None]), (root, torch.stack([tilted, half])[None]))
    drift = measure(pair)
    # TV 1/4, chi2 = 2 · (1/4)² / (1/2) = 1/4, KL = ½ ln(2/3) + ½ ln 2 = ½ ln(4/3), each met with probability 3/4
    assert drift.mean_tv.tolist() == [[0, pytest.approx(3 / 16)]]
    assert drift.mean_chi2.tolist() == [[0, pytest.approx(3 / 16)]]
    assert drift.mean_kl.tolist() == [[0, pytest.approx(0.75 * 0.5 * math.log(4 / 3))]]
    assert drift.seq_tv.tolist() == [pytest.approx(3 / 16)]
    assert worst_error(error_weights(pair)).tolist() == [pytest.approx(0, abs=1e-16)]  # one drifting token: L' is exact


def test_worst_reward_of_the_fair_coin_by_hand():
    # q = ½ (1 ± .2): weight = ¼ (ρ₁ - 1)(ρ₂ - 1) = ±.01 on four responses, two of each sign: worst error .02 = 2 ε²
    pair = pairs("tight", count=1, vocabulary=2, horizon=2, size=math.atanh(0.2))
    assert worst_error(error_weights(pair)).tolist() == [pytest.approx(0.02)]
    # at T = 3 the weight is W - 1 - Σ(ρ - 1): 1.728 - 1 - .6, 1.152 - 1 - .2, .768 - 1 + .2, .512 - 1 + .6 with
    # multiplicities 1, 3, 3, 1: .128, -.048, -.032, .112, so worst = (.128 + .112) / 8 = .03
    pair = pairs("tight", count=1, vocabulary=2, horizon=3, size=math.atanh(0.2))
    assert worst_error(error_weights(pair)).tolist() == [pytest.approx(0.03)]


def test_worst_reward_is_the_worst_of_all_rewards():
    pair = pairs(count=4, vocabulary=2, horizon=3)
    weights = error_weights(pair)
    every_reward = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)), dtype=torch.float64)
    torch.testing.assert_close(worst_error(weights), (weights @ every_reward.T).abs().amax(-1))
    lopsided = torch.tensor([[0.3, -0.1, 0.05]])
    assert worst_error(lopsided).item() == pytest.approx(0.35)
    assert worst_error(-lopsided).item() == pytest.approx(0.35)


def test_error_is_a_sum_of_orthogonal_martingale_differences():
    pair = pairs(count=200, vocabulary=3, horizon=4, size=1.0)
    ratios, mass = log_ratios(pair), path_sums(pair.rollout)
    terms = [
        (torch.expm1(weight)[..., None] * torch.expm1(ratio)).flatten(1)
        for weight, ratio in zip(path_sums(ratios), ratios, strict=False)
    ]
    leaves = pair.vocabulary**pair.horizon
    spread = torch.stack([x.repeat_interleave(leaves // x.shape[1], dim=1) for x in terms], dim=1)
    probability = mass[-1].exp()
    scale = (probability[:, None] * spread.square()).sum(-1)
    gram = torch.einsum("nl,nsl,ntl->nst", probability, spread, spread)
    off_diagonal = gram - torch.diag_embed(torch.diagonal(gram, dim1=1, dim2=2))
    assert off_diagonal.abs().max() < 1e-9 * gram.abs().max()
    assert (probability[:, None] * spread).sum(-1).abs().max() < 1e-9
    torch.testing.assert_close(scale.sum(-1), measure(pair).martingale, rtol=1e-9, atol=0)


def test_small_drift_keeps_its_digits():
    # the error of a pair is of second order: shrinking the step tenfold shrinks it a hundredfold
    errors = [
        worst_error(error_weights(pairs("tight", 1, 4, 4, size=math.atanh(size)))).item() for size in (1e-5, 1e-6, 1e-7)
    ]
    assert errors[0] / errors[1] == pytest.approx(100, rel=1e-4)
    assert errors[1] / errors[2] == pytest.approx(100, rel=1e-4)


def test_kinds_of_pairs():
    for kind in ("random", "sparse", "dense", "late", "tight"):
        pair = pairs(kind, count=5, vocabulary=4, size=0.3)
        for level in (*pair.rollout, *pair.current):
            torch.testing.assert_close(level.exp().sum(-1), torch.ones(level.shape[:2], dtype=torch.float64))
        again = pairs(kind, count=5, vocabulary=4, size=0.3)
        assert all(torch.equal(a, b) for a, b in zip(pair.current, again.current, strict=True))
    # tight: p uniform, q = p (1 ± tanh(size)): TV = tanh(size)/2, chi2 = tanh²(size), at every context
    drift = measure(pairs("tight", vocabulary=4, size=0.3))
    assert drift.mean_tv.unique().tolist() == pytest.approx([math.tanh(0.3) / 2] * len(drift.mean_tv.unique()))
    assert drift.chi2_max.tolist() == pytest.approx([math.tanh(0.3) ** 2] * 3)
    for ratio in log_ratios(pairs("dense", size=0.3)):  # the logits of a context are 0 or .6 apart
        gaps = (ratio[..., 1:] - ratio[..., :1]).abs()
        assert ((gaps < 1e-6) | ((gaps - 0.6).abs() < 1e-6)).all()
    agreeing = torch.cat([d.eq(0).all(-1).flatten() for d in log_ratios(pairs("sparse", 20, 4, 4, share=0.25))])
    assert agreeing.double().mean().item() == pytest.approx(0.75, abs=0.04)
    late = measure(pairs("late", 400, 4, 4)).mean_kl.mean(0)
    assert late[3] / late[0] == pytest.approx(16, rel=0.35)  # the step grows fourfold, KL with its square


def test_a_stop_token_ends_the_drift():
    pair = pairs(count=2, vocabulary=3, horizon=3, stop=True)
    ratios = log_ratios(pair)
    assert ratios[1][:, 0].abs().max() == 0  # the context after token 0
    assert ratios[1][:, 1:].abs().min() > 0
    ended = [0, 1, 2, 3, 6]  # contexts 00 01 02 10 20: a 0 in the prefix
    assert ratios[2][:, ended].abs().max() == 0
    assert ratios[2][:, [4, 5, 7, 8]].abs().min() > 0


def test_sharpen_finds_a_bound_that_is_too_small():
    pair = pairs(count=8, vocabulary=2, horizon=2, size=0.3)

    def tightness(candidate):
        return worst_error(error_weights(candidate)) / (2 * measure(candidate).tv_max.square())

    bent = sharpen(pair, lambda drift: 2 * drift.tv_max.square(), steps=150)
    assert tightness(bent).mean() > 0.9  # 2 ε² is attained at T = 2 ...
    assert tightness(bent).max() <= 1 + 1e-12  # ... and never passed
    assert tightness(bent).mean() > tightness(pair).mean()


def test_rows_can_be_selected():
    pair = pairs(count=4)
    torch.testing.assert_close(error_weights(select(pair, [2, 0])), error_weights(pair)[[2, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "rare"}, "unknown kind of pair 'rare'"),
        ({"horizon": 0}, "horizon 0"),
        ({"vocabulary": 1}, "vocabulary 1"),
        ({"vocabulary": 10, "horizon": 12}, "10\\^12 responses are too many"),
        ({"kind": "tight"}, "must be even"),
        ({"share": 1.5}, "share of drifting contexts is 1.5"),
    ],
)
def test_impossible_pairs_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        pairs(**{"kind": "sparse"} | change)


def test_levels_that_are_no_tree_are_refused():
    level = torch.zeros(1, 1, 2)
    with pytest.raises(DataError, match="are no tree"):
        TreePair((level, level), (level, level))
    with pytest.raises(DataError, match="one shape in both policies"):
        TreePair((level,), (torch.zeros(1, 1, 3),))

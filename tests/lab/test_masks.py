"""Masks on a tree small enough to work by hand, and against plain loops."""

import itertools
import math

import pytest
import torch

from holdfast.lab.masks import (
    acceptance,
    bad_contexts,
    gradient_cosine,
    hit_probability,
    kept_gain,
    masked_error_weights,
    sampled_hit_probability,
    sequence_extra,
    surrogate_noise,
    trusted_pair,
)
from holdfast.lab.oracle import mask_certificate, unified
from holdfast.lab.pairs import make_pairs
from holdfast.lab.trees import TreePair, context_divergences, error_weights, path_sums, worst_error


def hand_pair():
    """T = 2. Root: p = (.5, .5), q = (.6, .4); after 0: p = (.5, .5), q = (.9, .1); after 1 the policies agree."""
    p = ([[[0.5, 0.5]]], [[[0.5, 0.5], [0.5, 0.5]]])
    q = ([[[0.6, 0.4]]], [[[0.9, 0.1], [0.5, 0.5]]])
    return TreePair(*(tuple(torch.tensor(level, dtype=torch.float64).log() for level in policy) for policy in (p, q)))


def test_hand_tree():
    pair = hand_pair()
    # KL: root ½ ln(.25/.24) = .0204; after 0: ½ ln(.25/.09) = .511; after 1: 0
    bad = bad_contexts(pair, 0.1)
    assert [level.tolist() for level in bad] == [[[False]], [[True, False]]]
    assert hit_probability(pair, bad).tolist() == [pytest.approx(0.6)]
    assert sampled_hit_probability(pair, bad).tolist() == [pytest.approx(0.6)]
    assert acceptance(pair, bad).tolist() == [pytest.approx(0.5)]
    assert sequence_extra(pair, bad).tolist() == [pytest.approx(0.5 * 0.2)]  # |ρ - 1| = .2 where token 0 was drawn
    # Σ(ρ - 1) is 1, -.6, -.2, -.2: mean square .36; the sequence mask keeps the last two: .02
    assert surrogate_noise(pair, bad, "none").tolist() == [pytest.approx(0.6)]
    assert surrogate_noise(pair, bad, "sequence").tolist() == [pytest.approx(0.02**0.5)]
    # q - p - p Σ mask (ρ - 1) for 00, 01, 10, 11 with q = .54, .06, .2, .2 and p = ¼:
    expected = {
        "none": [0.54 - 0.25 - 0.25 * (0.2 + 0.8), 0.06 - 0.25 - 0.25 * (0.2 - 0.8), 0, 0],
        "token": [0.54 - 0.25 - 0.25 * 0.2, 0.06 - 0.25 - 0.25 * 0.2, 0, 0],
        "prefix": [0.54 - 0.25 - 0.25 * 0.2, 0.06 - 0.25 - 0.25 * 0.2, 0, 0],
        "sequence": [0.54 - 0.25, 0.06 - 0.25, 0, 0],
    }
    for mask, weights in expected.items():
        assert masked_error_weights(pair, bad, mask)[0].tolist() == pytest.approx(weights, abs=1e-15), mask


def test_token_and_prefix_masks_part_below_a_bad_context():
    # the root is bad: the token mask keeps what follows, the prefix mask keeps nothing
    pair = hand_pair()
    bad = (torch.tensor([[True]]), torch.tensor([[False, False]]))
    q, p = torch.tensor([0.54, 0.06, 0.2, 0.2], dtype=torch.float64), 0.25
    token = q - p - p * torch.tensor([0.8, -0.8, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(masked_error_weights(pair, bad, "token")[0], token)
    for mask in ("prefix", "sequence"):
        torch.testing.assert_close(masked_error_weights(pair, bad, mask)[0], q - p)
    assert hit_probability(pair, bad).tolist() == [pytest.approx(1)]
    assert sampled_hit_probability(pair, bad).tolist() == [pytest.approx(1)]
    kept = trusted_pair(pair, bad, "token")
    assert torch.equal(kept.current[0], pair.rollout[0])
    assert torch.equal(kept.current[1], pair.current[1])
    nothing = trusted_pair(pair, bad, "prefix")
    assert all(torch.equal(a, b) for a, b in zip(nothing.current, pair.rollout, strict=True))


def test_masks_against_plain_loops():
    pair = make_pairs(
        "sparse", torch.full((2,), 1.0), vocabulary=2, horizon=4, generator=torch.Generator().manual_seed(5), share=0.4
    )
    bad, kl = bad_contexts(pair, 0.05), context_divergences(pair)[0]
    for row in range(2):
        hit, extra, accepted = 0.0, 0.0, 0.0
        for leaf, response in enumerate(itertools.product(range(2), repeat=4)):
            p = q = 1.0
            before, met, gains, surviving = 1.0, False, {"token": 0.0, "prefix": 0.0, "all": 0.0}, True
            context = 0
            for t, token in enumerate(response):
                if kl[t][row, context] > 0.05:
                    met, surviving = True, False
                a = math.exp(pair.rollout[t][row, context, token])
                b = math.exp(pair.current[t][row, context, token])
                gain = b / a - 1
                gains["all"] += gain
                gains["token"] += gain * (kl[t][row, context] <= 0.05).item()
                gains["prefix"] += gain * surviving
                before *= b / a if surviving else 1.0
                p, q, context = p * a, q * b, 2 * context + token
            hit += p * before * met
            accepted += p * (not met)
            extra += p * met * abs(gains["token"])
            gains |= {"sequence": 0.0 if met else gains["all"], "none": gains["all"]}
            for mask in ("none", "token", "prefix", "sequence"):
                weight = masked_error_weights(pair, bad, mask)[row, leaf].item()
                assert weight == pytest.approx(q - p - p * gains[mask], abs=1e-14), mask
        assert hit_probability(pair, bad)[row].item() == pytest.approx(hit)
        assert acceptance(pair, bad)[row].item() == pytest.approx(accepted)
        assert sequence_extra(pair, bad)[row].item() == pytest.approx(extra)


def test_each_certificate_is_about_the_policy_its_mask_trusts():
    pair = make_pairs(
        "sparse", torch.full((20,), 1.0), vocabulary=2, horizon=4, generator=torch.Generator().manual_seed(5), share=0.4
    )
    bad = bad_contexts(pair, 0.05)
    for mask in ("token", "prefix"):
        expected = unified(trusted_pair(pair, bad, mask)) + hit_probability(pair, bad)
        torch.testing.assert_close(mask_certificate(pair, bad, mask), expected)
    assert mask_certificate(pair, bad, "prefix").mean() < mask_certificate(pair, bad, "token").mean()


def test_masks_change_nothing_where_nothing_is_bad():
    pair = make_pairs(
        "random", torch.full((5,), 0.2), vocabulary=3, horizon=3, generator=torch.Generator().manual_seed(6)
    )
    bad = bad_contexts(pair, 1e9)
    expected = worst_error(error_weights(pair))
    for mask in ("none", "token", "prefix", "sequence"):
        torch.testing.assert_close(worst_error(masked_error_weights(pair, bad, mask)), expected)
        torch.testing.assert_close(mask_certificate(pair, bad, mask), mask_certificate(pair, bad, "none"))
    assert hit_probability(pair, bad).abs().max() == 0
    torch.testing.assert_close(acceptance(pair, bad), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("mask", ["none", "token", "prefix", "sequence"])
def test_the_cosine_is_that_of_gradients_by_autograd(mask):
    g = torch.Generator().manual_seed(1)
    pair = make_pairs("dense", torch.tensor([1.5, 0.7], dtype=torch.float64), vocabulary=2, horizon=4, generator=g)
    bad = bad_contexts(pair, 0.1)
    reward = torch.rand(2, 16, generator=g, dtype=torch.float64)
    leaves = [level.clone().requires_grad_() for level in pair.current]
    moving = TreePair(pair.rollout, tuple(leaf.log_softmax(-1) for leaf in leaves))
    mass = path_sums(pair.rollout)[-1].exp()
    centred = reward - (mass * reward).sum(-1, keepdim=True)

    def gradient(value):
        found = torch.autograd.grad(value.sum(), leaves, retain_graph=True)
        return torch.cat([level.flatten(1) for level in found], -1)

    true = gradient(path_sums(moving.current)[-1].exp() * reward)
    masked = gradient(mass * centred * kept_gain(moving, bad, mask))
    expected = torch.cosine_similarity(true, masked, dim=-1)
    torch.testing.assert_close(gradient_cosine(pair, bad, mask, reward), expected)
    assert (expected < 0.9999).all()

"""Exact KL against sampled k3: by hand, in both directions, over prompts, and quiet where all is well."""

import math

import pytest
import torch

from holdfast.core.confidence import Confidence
from holdfast.core.kl_comparison import compare_kl
from holdfast.errors import DataError


def sums(count, seed, scale=0.3):
    """Σ KL and Σ k3 of one token per rollout, 6 symbols, drift of `scale` in every logit."""
    draw = torch.Generator().manual_seed(seed)
    p = torch.randn(count, 6, generator=draw, dtype=torch.float64).log_softmax(-1)
    q = (p + scale * torch.randn(count, 6, generator=draw, dtype=torch.float64)).log_softmax(-1)
    rows = torch.multinomial(p.exp(), 1, generator=draw)
    ratio = (q - p).gather(1, rows)[:, 0]
    return (p.exp() * (p - q)).sum(-1), ratio.exp() - 1 - ratio


def test_by_hand():
    # Differences .1 - .05, .3 - .1, .2 - .3, .2 - .15: mean .05, standard deviation √(.045/3), error that / √4.
    found = compare_kl(torch.tensor([0.1, 0.3, 0.2, 0.2]), torch.tensor([0.05, 0.1, 0.3, 0.15]))
    assert found.difference.estimate == pytest.approx(0.05)
    assert found.standard_error == pytest.approx(math.sqrt(0.045 / 3) / 2)
    assert (found.kl, found.k3, found.units, found.level) == (pytest.approx(0.2), pytest.approx(0.15), 4, 0.99)
    # 1e-6 per token and 1e-3 of the mean of the larger sums, (.1 + .3 + .3 + .2) / 4.
    assert found.tolerance == pytest.approx(1e-6 + 1e-3 * 0.225)


def test_what_chance_may_have_left_out_is_not_called_unseen():
    # Ten units .5 - .1 = .4 apart; 3/10 of the largest k3, .1, may be missing by chance: .37 is not.
    found = compare_kl(torch.full((10,), 0.5).double(), torch.full((10,), 0.1).double())
    assert found.by_chance == pytest.approx(0.03)
    assert found.unseen == pytest.approx(0.37)
    assert compare_kl(torch.full((10,), 0.12).double(), torch.full((10,), 0.1).double()).unseen == 0.0


def test_true_kl_is_seldom_doubted():
    found = [compare_kl(*sums(300, seed), confidence=Confidence(level=0.99, resamples=400)) for seed in range(200)]
    assert sum(f.unseen > 0 for f in found) <= 6 and sum(f.contradicted for f in found) <= 6


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_kl_of_other_policies_is_found(factor):
    kl, k3 = sums(3000, 1)
    found = compare_kl(kl * factor, k3)
    assert found.contradicted == (factor < 1)
    assert (found.unseen > 0.5 * kl.mean()) == (factor > 1)


def test_rollouts_of_a_prompt_are_one_unit():
    kl, k3 = sums(50, 2)
    repeated = compare_kl(kl.repeat_interleave(8), k3.repeat_interleave(8), group_ids=torch.arange(400) // 8)
    alone = compare_kl(kl, k3)
    assert repeated.units == 50
    assert repeated.difference.lower == pytest.approx(alone.difference.lower, rel=1e-9)
    assert repeated.standard_error == pytest.approx(alone.standard_error)


def test_rounding_is_no_evidence():
    """Policies that agree, with KL as float32 leaves it, tell nothing."""
    kl = torch.full((100,), 3e-5)
    found = compare_kl(kl, torch.zeros(100), tokens=torch.full((100,), 60))
    assert found.unseen == 0.0 and not found.contradicted
    assert compare_kl(kl, torch.zeros(100), tokens=torch.full((100,), 20)).unseen > 0


def test_bad_sums_are_named():
    with pytest.raises(DataError, match="shapes"):
        compare_kl(torch.zeros(3), torch.zeros(4))
    with pytest.raises(DataError, match="not finite"):
        compare_kl(torch.tensor([0.0, math.nan]), torch.zeros(2))
    with pytest.raises(DataError, match="at least 2"):
        compare_kl(torch.zeros(1), torch.zeros(1))

"""Masks against numbers worked by hand, and the whole-batch ones against naive loops."""

from dataclasses import replace
from math import log

import pytest
import torch

from cases import random_batch
from holdfast import Batch, ConfigError, DataError, Objective, TokenStats
from holdfast.lab.masks import bad_contexts, kept_gain
from holdfast.lab.pairs import make_pairs
from holdfast.lab.trees import context_divergences
from holdfast.objectives.parts.covariance import ClipCov
from holdfast.objectives.parts.masks import TrmAvg, TrmMax
from holdfast.objectives.parts.ratio_masks import LnTrm, Opsm, RatioBand, Ser
from holdfast.objectives.parts.terms import Terms
from holdfast.objectives.parts.token_masks import Cppo, Dppo, M2po, TopEntropy, masked_quantile


def one(ratios, advantage=1.0, probability=0.4, **stats):
    """One sequence whose tokens have these θ/rollout; θ = probability · ratio."""
    rho = torch.tensor([ratios], dtype=torch.float64)
    batch = Batch(
        advantages=torch.tensor([advantage], dtype=torch.float64),
        response_mask=torch.ones_like(rho, dtype=torch.bool),
        old_logprobs=torch.full_like(rho, log(probability)),
        rollout_logprobs=torch.full_like(rho, log(probability)),
    )
    extra = {name: torch.tensor([value], dtype=torch.float64) for name, value in stats.items()}
    return batch, TokenStats(logprobs=(probability * rho).log(), **extra)


def keep(mask, batch, stats):
    terms = Terms.of(batch, stats)
    return mask.keep(terms, mask.prepare(terms, 0)).expand(terms.mask.shape)[0].tolist()


@pytest.mark.parametrize(
    ("mask", "ratios", "kept"),
    [
        # k2 of ρ = e^.5 is .125 exactly at the threshold: kept.
        (TrmMax(0.125), [1.0, 2.718281828459045**0.5], True),
        (TrmMax(0.1249), [1.0, 2.718281828459045**0.5], False),
        # k3 = ρ − 1 − log ρ: (0 + .0945349)/2 = .0472674
        (TrmAvg(0.04727), [1.0, 1.5], True),
        (TrmAvg(0.04726), [1.0, 1.5], False),
        # mean |ρ − 1| = (.5 + .25)/2 = .375
        (Ser(0.376), [1.5, 0.75], True),
        (Ser(0.374), [1.5, 0.75], False),
        # geometric mean √(2 · .5) = 1 although both tokens drift
        (RatioBand(0.99, 1.01, "sequence_mean"), [2.0, 0.5], True),
        (RatioBand(0.99, 1.01, "sequence_mean"), [1.1, 1.1], False),
        (RatioBand(0.5, 3.0, "sequence_sum"), [1.5, 1.5], True),
        (RatioBand(0.5, 2.2, "sequence_sum"), [1.5, 1.5], False),
    ],
)
def test_sequence_masks(mask, ratios, kept):
    assert keep(mask, *one(ratios)) == [kept] * len(ratios)


def test_token_band_closed_at_both_ends():
    assert keep(RatioBand(0.5, 2.0), *one([0.49, 0.51, 1.99, 2.01])) == [False, True, True, False]


def test_exact_and_sampled_detectors_disagree_where_the_sample_is_blind():
    """|log ρ| small at the sampled token says little: true KL may still be √(2δ) (.316 at δ = .05)."""
    case = one([1.01, 1.01], kl_rollout=[0.3, 0.0])
    assert keep(TrmMax(0.05), *case) == [True, True]
    assert keep(TrmMax(0.05, "kl_exact"), *case) == [False, False]


@pytest.mark.parametrize(
    ("scope", "kept"),
    [("token", [True, False, True, False]), ("prefix", [True, False, False, False]), ("sequence", [False] * 4)],
)
def test_what_one_bad_context_takes_with_it(scope, kept):
    # .05 is at the threshold and stays; the third context is fine, whatever came before
    case = one([1.0] * 4, kl_rollout=[0.05, 0.06, 0.01, 0.3])
    assert keep(TrmMax(0.05, "kl_exact", scope=scope), *case) == kept


def test_a_masked_out_context_is_never_bad():
    batch, stats = one([1.0] * 3, kl_rollout=[0.3, 0.0, 0.0])
    batch = replace(batch, response_mask=torch.tensor([[False, True, True]]))
    assert keep(TrmMax(0.05, "kl_exact", scope="prefix"), batch, stats) == [True, True, True]


@pytest.mark.parametrize("scope", ["token", "prefix"])
@pytest.mark.parametrize(
    ("detector", "words"),
    [
        *((name, r"computed from the sampled token.*is no longer 0.*'tv_upper' comes from the engine's top-K")
          for name in ("k1", "k2", "k3", "abs_log", "binary_tv", "binary_kl")),
        ("kl_lower", "it is a lower bound"),
        ("tv_lower", "it is a lower bound"),
    ],
)  # fmt: skip
def test_scopes_need_what_is_known_before_the_token(scope, detector, words):
    with pytest.raises(ConfigError, match=f"TrmMax.scope = '{scope}' with detector = '{detector}': .*{words}"):
        TrmMax(0.05, detector, scope=scope)
    TrmMax(0.05, detector, scope="sequence")


@pytest.mark.parametrize("scope", ["token", "prefix", "sequence"])
def test_on_a_tree_the_kept_sums_are_the_labs_and_only_contexts_have_mean_zero(scope):
    """Every response of a tree as one batch: Σ_t M_t (ρ_t − 1) with exact KL, and its mean under the rollout policy."""
    g = torch.Generator().manual_seed(3)
    pair = make_pairs("dense", torch.tensor([0.8], dtype=torch.float64), vocabulary=3, horizon=3, generator=g)
    bad = bad_contexts(pair, 0.05)
    kl = torch.stack([level[0].repeat_interleave(27 // level.shape[-1]) for level in context_divergences(pair)[0]], -1)
    p, q = (
        torch.stack([level.flatten(1)[0].repeat_interleave(27 // level[0].numel()) for level in policy], -1)
        for policy in (pair.rollout, pair.current)
    )
    batch = Batch(
        advantages=torch.ones(27, dtype=torch.float64), response_mask=torch.ones_like(p, dtype=torch.bool),
        rollout_logprobs=p,
    )  # fmt: skip
    terms = Terms.of(batch, TokenStats(logprobs=q, kl_rollout=kl))
    kept = TrmMax(0.05, "kl_exact", scope=scope).keep(terms, None)
    gains = (kept * torch.expm1(q - p)).sum(-1)
    torch.testing.assert_close(gains, kept_gain(pair, bad, scope)[0])
    assert 0 < kept.double().mean() < 1
    mean = float((p.sum(-1).exp() * gains).sum())
    assert abs(mean) < 1e-12 if scope != "sequence" else abs(mean) > 1e-4
    # The same token mask from the sampled k2 drops samples, not contexts.
    sampled = terms.divergence("k2", "rollout") <= 0.05
    assert abs(float((p.sum(-1).exp() * (sampled * torch.expm1(q - p)).sum(-1)).sum())) > 1e-3


def test_alternating_drift_fools_the_signed_mean_but_not_trm():
    case = one([3.0, 1 / 3.0, 3.0, 1 / 3.0], advantage=-1.0, probability=0.3)
    assert keep(Opsm(0.05), *case) == [True] * 4
    assert keep(TrmMax(0.1), *case) == [False] * 4


def test_opsm_drops_only_bad_answers_that_the_policy_has_left():
    ratios = [0.5, 0.5]  # mean(log rollout − log θ) = .693
    assert keep(Opsm(0.69), *one(ratios, advantage=-1.0)) == [False, False]
    assert keep(Opsm(0.70), *one(ratios, advantage=-1.0)) == [True, True]
    assert keep(Opsm(0.01), *one(ratios, advantage=1.0)) == [True, True]


def test_ln_trm_weights_early_tokens_more_and_uses_the_horizon():
    # horizon 101, ε = .01, δ = .02: w_1 = min(1, 1, 1) = 1; w_2 = min(.99, √.99) = .99
    # drift in the first token: .5/(1.99) = .2513; in the second: .5 · .99/1.99 = .2487
    mask = LnTrm(0.25, horizon=101, epsilon=0.01, kl=0.02)
    assert keep(mask, *one([1.5, 1.0])) == [False, False]
    assert keep(mask, *one([1.0, 1.5])) == [True, True]
    # w_2 by the square root: horizon 3, ε = 1, δ = .02: w = √.02, √.01, 0
    assert keep(LnTrm(0.2072, horizon=3, epsilon=1.0, kl=0.02), *one([1.0, 1.5])) == [True, True]
    assert keep(LnTrm(0.2070, horizon=3, epsilon=1.0, kl=0.02), *one([1.0, 1.5])) == [False, False]


def test_ln_trm_keeps_what_cannot_shift_anything():
    assert keep(LnTrm(0.01, horizon=1), *one([3.0], probability=0.3)) == [True]


def test_acceptance_of_a_maximum_falls_with_length_and_of_ln_trm_does_not():
    g = torch.Generator().manual_seed(0)
    shares = {}
    for length in (16, 256):
        noise = 0.1 * torch.randn(400, length, generator=g, dtype=torch.float64)
        old = torch.full_like(noise, -1.5)
        batch = Batch(
            advantages=torch.ones(400, dtype=torch.float64),
            response_mask=torch.ones_like(noise, dtype=torch.bool),
            rollout_logprobs=old,
        )
        terms = Terms.of(batch, TokenStats(logprobs=old + noise))
        for mask in (TrmMax(0.03), LnTrm(0.085, horizon=256)):
            shares[mask.kind(), length] = mask.keep(terms, None).double().mean().item()
    # k2 > .03 means |z| > 2.45: p = .0143, so (1 − p)^16 = .79 and (1 − p)^256 = .025.
    assert shares["trm_max", 16] == pytest.approx(0.79, abs=0.07)
    assert shares["trm_max", 256] == pytest.approx(0.025, abs=0.03)
    assert shares["ln_trm", 256] > shares["ln_trm", 16] - 0.05 > 0.4


def test_dppo_rejects_only_tokens_moving_away():
    # |θ − rollout| = .4 |ρ − 1|: .12, .12, .28, .28
    ratios = [1.3, 0.7, 1.7, 0.3]
    assert keep(Dppo(0.2), *one(ratios)) == [True, True, False, True]
    assert keep(Dppo(0.2), *one(ratios, advantage=-1.0)) == [True, True, True, False]
    assert keep(Dppo(0.1), *one(ratios, advantage=0.0)) == [True] * 4
    case = one(ratios, tv_rollout=[0.9, 0.0, 0.0, 0.0])
    assert keep(Dppo(0.2, "tv_exact"), *case) == [False, True, True, True]


def test_dppo_may_reject_whatever_the_advantage_says():
    # |θ − rollout| = .4 |ρ − 1|: .28 up, .28 down, .12
    ratios = [1.7, 0.3, 1.3]
    for advantage in (1.0, -1.0, 0.0):
        assert keep(Dppo(0.2, rejects="any"), *one(ratios, advantage)) == [False, False, True]
        assert keep(Dppo(0.2, rejects="falling"), *one(ratios, advantage)) == [True, False, True]


def test_masks_on_the_drift_before_the_step():
    """old/rollout = 1.5, .75 whatever the step has done to θ: θ/rollout is 1 here."""
    batch, stats = one([1.0, 1.0])
    assert batch.rollout_logprobs is not None
    old = batch.rollout_logprobs + torch.tensor([[1.5, 0.75]], dtype=torch.float64).log()
    case = replace(batch, old_logprobs=old), stats
    assert keep(RatioBand(0.8, 1.2, numerator="old"), *case) == [False, False]
    assert keep(RatioBand(0.8, 1.2), *case) == [True, True]
    # geometric mean √1.125 = 1.0607
    assert keep(RatioBand(0.999, 1.06, "sequence_mean", numerator="old"), *case) == [False, False]
    assert keep(RatioBand(0.999, 1.061, "sequence_mean", numerator="old"), *case) == [True, True]
    # KL_bin(.4‖.6) = .4 log(.4/.6) + .6 log(.6/.4) = .0811; KL_bin(.4‖.3) = .0226; mean .0518
    assert keep(TrmAvg(0.052, "binary_kl", numerator="old"), *case) == [True, True]
    assert keep(TrmAvg(0.0515, "binary_kl", numerator="old"), *case) == [False, False]
    assert keep(TrmAvg(0.0515, "binary_kl"), *case) == [True, True]
    with pytest.raises(ConfigError, match=r"TrmAvg.numerator = 'old': must be 'current' for 'kl_exact'"):
        TrmAvg(0.1, "kl_exact", numerator="old")


def test_cppo_budget_by_hand():
    # θ − rollout = .2, .2, .2 (rollout .4): D = .2 each, quantile .2, b = .04 (limit 2 b_min).
    # w = 1, .9, .8; Z = .2, .18, .16. δ = .3: c_1 = .3; c_2 = .3 + .04 − .2 = .14 < .18; c_3 < 0.
    assert keep(Cppo(0.3), *one([1.5, 1.5, 1.5])) == [True, False, False]
    # b is the quantile up to twice b_min: D = .2, .1625, Z_2 = .13 ≤ c_2 = .3 + .04 − .2; with b_min alone it is .12.
    assert keep(Cppo(0.3), *one([1.5, 1.40625])) == [True, True]
    assert keep(Cppo(0.3, b_min=0.01), *one([1.5, 1.40625])) == [True, False]
    # Moving back is always kept, and rejected tokens have been counted in the prefix.
    assert keep(Cppo(0.3), *one([1.5, 0.5, 1.5])) == [True, True, False]
    # A quiet prefix earns budget but never more than δ: c_2 = min(.3, .3 + .04).
    assert keep(Cppo(0.3), *one([1.0, 1.74])) == [True, True]  # Z_2 = .8 · .296 = .237
    assert keep(Cppo(0.2), *one([1.0, 1.74])) == [True, False]


def naive_m2po(square, budget):
    """Drop the largest until the mean of the rest is within the budget."""
    kept = sorted(square)
    while kept and sum(kept) / len(kept) > budget:
        kept.pop()
    return kept


@pytest.mark.parametrize("budget", [0.001, 0.02, 0.05, 10.0])
def test_m2po_against_a_loop(budget):
    batch, stats = random_batch(16, 20, seed=4)
    terms = Terms.of(batch, stats)
    mask = M2po(budget)
    inside = mask.keep(terms, mask.prepare(terms, 0))
    d = terms.log_ratio("rollout")
    away = (d * terms.advantages > 0) & terms.mask
    assert torch.equal(inside | away, torch.ones_like(inside)), "tokens moving back are never rejected"
    kept = sorted((d[away & inside] ** 2).tolist())
    assert kept == pytest.approx(naive_m2po((d[away] ** 2).tolist(), budget))


def test_top_entropy_keeps_the_quantile():
    batch, stats = random_batch(10, 30, seed=2)
    terms = Terms.of(batch, stats)
    mask = TopEntropy(0.2)
    inside = mask.keep(terms, mask.prepare(terms, 0)) & terms.mask
    assert terms.entropy is not None
    chosen = terms.entropy[terms.mask]
    assert inside.sum() == (chosen >= torch.quantile(chosen, 0.8)).sum()


def test_masked_quantile_is_torchs_on_the_kept_values():
    g = torch.Generator().manual_seed(1)
    values = torch.randn(5, 40, generator=g, dtype=torch.float64)
    mask = torch.rand(5, 40, generator=g) > 0.4
    for q in (0.0, 0.13, 0.5, 0.9, 1.0):
        for row in range(5):
            expected = torch.quantile(values[row][mask[row]], q)
            torch.testing.assert_close(masked_quantile(values, mask, q)[row, 0], expected)
    assert masked_quantile(values, torch.zeros_like(mask), 0.5).isinf().all()


def test_clip_cov_draws_the_nominal_share_of_the_eligible_and_the_same_whatever_the_order():
    batch, stats = random_batch(64, 64, seed=9)
    terms = Terms.of(batch, stats)
    mask = ClipCov(clip_share=0.01, low=0.1, high=9.0, seed=5)
    dropped = ~mask.keep(terms, mask.prepare(terms, 3)) & terms.mask
    assert dropped.sum() == int(0.01 * terms.mask.sum())
    logprobs, advantages = terms.logprobs[terms.mask], terms.advantages[terms.mask]
    covariance = (terms.logprobs - logprobs.mean()) * (terms.advantages - advantages.mean())
    assert (covariance[dropped] > 0.1).all() and (covariance[dropped] < 9.0).all()
    other_step, other_seed = mask.prepare(terms, 4), replace(mask, seed=6).prepare(terms, 3)
    assert not torch.equal(mask.prepare(terms, 3), other_step)
    assert not torch.equal(mask.prepare(terms, 3), other_seed)


def test_clip_cov_draws_uniformly():
    batch, stats = random_batch(32, 32, seed=10)
    terms = Terms.of(batch, stats)
    mask = ClipCov(clip_share=0.05, low=0.1, high=9.0)
    hits = torch.stack([mask.prepare(terms, step) for step in range(400)]).double().sum(0)
    eligible = hits > 0
    rate = hits[eligible] / 400
    drawn = int(0.05 * terms.mask.sum())
    expected = drawn / eligible.sum()
    assert (rate.mean() - expected).abs() < 0.02 * expected
    # Binomial spread: a draw that favoured some tokens would be wider.
    assert rate.std() < 1.3 * (expected * (1 - expected) / 400).sqrt()


def test_a_small_batch_may_drop_no_token_at_all():
    """The released code rounds up to one token, which in a small batch is many times the nominal share."""
    batch, stats = random_batch(4, 8)
    terms = Terms.of(batch, stats)
    assert not ClipCov(low=-100.0, high=100.0).prepare(terms, 0).any()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: TrmMax(-0.1), "TrmMax.delta = -0.1: must be a finite number above 0"),
        (lambda: TrmAvg(0.0), "TrmAvg.delta_avg = 0.0"),
        (lambda: ClipCov(clip_share=0.0), r"ClipCov.clip_share = 0.0: must be in \(0, 1\]"),
        (lambda: ClipCov(low=5.0), "ClipCov.high = 5.0: must be above low = 5"),
        (lambda: RatioBand(2.0, 1.0), "RatioBand.high = 1.0"),
        (lambda: LnTrm(epsilon=1.5), "LnTrm.epsilon = 1.5"),
        (lambda: TopEntropy(1.1), "TopEntropy.top = 1.1"),
        (lambda: Cppo(w_min=0.0), "Cppo.w_min = 0.0"),
    ],
)
def test_impossible_values_are_refused(build, words):
    with pytest.raises(ConfigError, match=words):
        build()


def test_a_missing_measurement_is_named():
    batch, stats = one([1.0])
    with pytest.raises(DataError, match=r"TokenStats.kl_rollout, which is None: measure it"):
        Objective(masks=(TrmMax(0.1, "kl_exact"),))(batch, stats)
    with pytest.raises(DataError, match=r"needs Batch.rollout_logprobs"):
        Objective(masks=(TrmMax(0.1),))(replace(batch, rollout_logprobs=None), stats)

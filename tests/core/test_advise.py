"""Threshold advice: hand-worked scores, the length law, the noise floor, the KL that a limit allows."""

import json

import pytest
import torch

from holdfast.core.advise import PUBLISHED, advise, allowed_kl
from holdfast.core.bounds import table, unified
from holdfast.core.bounds_measured import sampled_drift
from holdfast.errors import ConfigError, DataError
from holdfast.objectives.objective import Objective
from holdfast.types import Batch, TokenStats


def batch_of(log_ratio, lengths=None, kl=None, advantages=None):
    log_ratio = torch.as_tensor(log_ratio, dtype=torch.float64)
    rows, width = log_ratio.shape
    lengths = torch.full((rows,), width) if lengths is None else torch.as_tensor(lengths)
    mask = torch.arange(width)[None, :] < lengths[:, None]
    rollout = torch.full((rows, width), -1.0, dtype=torch.float64)
    advantages = torch.ones(rows) if advantages is None else torch.as_tensor(advantages)
    return Batch(advantages, mask, rollout_logprobs=rollout), TokenStats(rollout + log_ratio, kl_rollout=kl)


def point(advice, rule, threshold):
    return next(p for p in advice.sweeps[rule] if p.threshold == threshold)


def test_scores_and_shares_by_hand():
    # k2 maxima: .4²/2 = .08, .2²/2 = .02, .1²/2 = .005, 0; the published .05 rejects the first only.
    # Signal Σ n |A|: 2·3, 2·1, 2·1, 2·1 = 12, so 6/12 is lost.
    advice = advise(*batch_of([[0.4, 0], [0.2, 0], [0.1, 0], [0, 0]], advantages=[-3.0, 1, 1, 1]), horizon=8)
    at = point(advice, "trm_max", 0.05)
    assert (at.acceptance, at.lost_signal, at.error) == (0.75, 0.5, None)
    # k3 means: (e^.4 - 1.4)/2 = .045912, (e^.2 - 1.2)/2 = .010701, (e^.1 - 1.1)/2 = .0025855: .001 keeps one.
    assert point(advice, "trm_avg", 0.001).acceptance == 0.25
    kept = [p.threshold for p in advice.sweeps["trm_avg"] if p.acceptance == 1]
    assert kept[0] == pytest.approx(0.0459123, rel=1e-5)
    # At twice the drift, (e^.8 - 1.8)/2: the largest that is tried, with room for every rollout.
    assert kept[-1] == pytest.approx(0.2127705, rel=1e-5)
    # LN-TRM, ε = .1, δ = .02, T = 8: w_1 = √(7 · .01) = .264575, w_2 = √.06 = .244949;
    # largest score (e^.4 - 1) .264575 / .509524 = .255384.
    kept = [p.threshold for p in advice.sweeps["ln_trm"] if p.acceptance == 1]
    assert kept[0] == pytest.approx(0.255384, rel=1e-5)
    settings = advice.recommendations["ln_trm"].settings
    assert (settings["horizon"], settings["epsilon"], settings["kl"]) == (8, 0.1, 0.02)
    json.dumps(advice.to_dict(), allow_nan=False)


def test_error_by_hand():
    # Exact KL (.3, .01, .01) per rollout in the first of two tokens; ρ - 1 = (.5, .1, 0) there, 0 in the second.
    # At δ = .05 (reject the first): any-mask bound S + E[(1-M)|Σ|] = .32/3 + .5/3 = .273333.
    # Sequence mask: kl_before .02/3, hit 1/3, lost 0 (the bad context is the first): .0066667 + q, kl(⅓‖q) = .0066667.
    kl = torch.tensor([[0.3, 0], [0.01, 0], [0.01, 0]], dtype=torch.float64)
    rows = torch.tensor([[1.5, 1], [1.1, 1], [1, 1]], dtype=torch.float64).log()
    advice = advise(*batch_of(rows, kl=kl), horizon=2, target_acceptance=0.5)
    assert point(advice, "trm_max", 0.05).error == pytest.approx(0.82 / 3, rel=1e-9)
    assert point(advice, "trm_max", 0.3).error == pytest.approx(0.32 / 3, rel=1e-9)  # keeps everything: S alone
    chosen = advice.recommendations["trm_max"]
    # Rejecting costs more than the drift itself: nothing is, nor at twice the drift, four times the KL.
    assert chosen.needed is False and chosen.point.threshold == pytest.approx(1.2)
    assert "no mask is needed; without one the error is at most 0.107, and no threshold" in chosen.reason
    assert chosen.settings == {"delta": chosen.point.threshold, "detector": "kl_exact"}
    assert (chosen.point.acceptance, chosen.acceptance_at_twice) == (1, 1)


def test_a_mask_is_recommended_where_it_pays():
    """100 rollouts, one with a KL of 50 and a useless gradient: rejecting it lowers the error from .5 to about .03."""
    kl = torch.full((100, 4), 1e-4, dtype=torch.float64)
    kl[0, 3] = 50.0
    advice = advise(*batch_of(torch.zeros(100, 4), kl=kl), horizon=4)
    chosen = advice.recommendations["trm_max"]
    assert chosen.point.threshold < 50
    assert chosen.point.acceptance == pytest.approx(0.99)
    assert chosen.point.error < 0.05 < advice.sweeps["trm_max"][-1].error
    assert chosen.needed is True and "0.5 without a mask" in chosen.reason
    # Any threshold between 1e-4 and 50 rejects that rollout alone; the middle of (.05, 50) is √2.5.
    assert chosen.point.threshold == pytest.approx(2.5**0.5)


def long_and_short(rate, rows=800, horizon=200, seed=0):
    """Small noise everywhere, and violating tokens at a constant rate: acceptance by the maximum is (1 - p)^T."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(10, horizon + 1, (rows,), generator=g)
    log_ratio = 0.02 * torch.randn(rows, horizon, generator=g, dtype=torch.float64)
    return batch_of(torch.where(torch.rand(rows, horizon, generator=g) < rate, 0.5, log_ratio), lengths)


def test_length_bias_is_warned_of_with_ln_trm_as_the_answer():
    advice = advise(*long_and_short(rate=0.005), horizon=200)
    warning = next(w for w in advice.warnings if "(usual)" in w)
    assert "acceptance falls with length: TRM-Max at 0.05" in warning
    assert "LN-TRM with max_weighted" in warning
    shares = point(advice, "trm_max", 0.05).acceptance_by_length
    # Quarter means of (1 - .005)^n for n uniform in 10..57, …, 153..200: about .85, .66, .52, .41.
    assert shares == pytest.approx((0.85, 0.66, 0.52, 0.41), abs=0.08)
    neutral = advice.recommendations["ln_trm"].point.acceptance_by_length
    assert abs(neutral[0] - neutral[-1]) < shares[0] - shares[-1]
    assert not any("usual" in w for w in advise(*long_and_short(rate=0.0), horizon=200).warnings)


def drift(scale, rows=120, width=20, seed=0, tails="normal", exact=False):
    """Rollouts whose log-ratios are `scale` times noise, sequences drifting by .5 to 1.5 of it; KL = variance / 2."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, width, generator=g, dtype=torch.float64)
    if tails == "heavy":  # Student's t with 5 degrees of freedom, of variance 1
        z = z / (torch.randn(5, rows, width, generator=g, dtype=torch.float64).square().mean(0) * 5 / 3).sqrt()
    each = scale * (0.5 + torch.rand(rows, 1, generator=g, dtype=torch.float64))
    return batch_of(each * z, kl=(each**2 / 2).expand(rows, width).clone() if exact else None)


def accepted(recommendation, data):
    """What the mask with the recommended settings keeps of other rollouts."""
    objective = Objective.from_dict({"masks": [{"kind": recommendation.rule, **recommendation.settings}]})
    plan = objective.prepare(*data, validate=False)
    return objective(*data, plan=plan).trust_mask.any(-1).double().mean().item()


@pytest.mark.parametrize("tails", ["normal", "heavy"])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("scale", [1e-4, 3e-3, 0.02, 0.06, 0.2, 0.5])
def test_the_next_batch_keeps_its_acceptance_with_more_noise(scale, exact, tails):
    """Fresh rollouts with 1, 1.2 and 1.5 times the noise, through the masks themselves."""
    for target in (0.7, 0.9):
        advice = advise(*drift(scale, tails=tails, exact=exact), horizon=40, target_acceptance=target)
        for recommendation in advice.recommendations.values():
            for more in (1.0, 1.2, 1.5):
                later = [
                    accepted(recommendation, drift(more * scale, seed=s, tails=tails, exact=exact)) for s in (1, 2)
                ]
                assert min(later) >= target, recommendation.reason
            if recommendation.needed is False:
                assert min(later) >= 0.99


@pytest.mark.parametrize("scale", [1e-4, 3e-3])
@pytest.mark.parametrize("exact", [False, True])
def test_harmless_drift_is_not_masked(scale, exact):
    advice = advise(*drift(scale, exact=exact), horizon=40)
    for rule, chosen in advice.recommendations.items():
        assert chosen.point.acceptance == chosen.acceptance_at_twice == 1
        assert chosen.point.threshold == PUBLISHED[rule]
        assert chosen.needed is (False if exact else None)
        assert ("no mask is needed" in chosen.reason) == exact


def test_with_exact_kl_the_largest_threshold_with_the_smallest_error_is_taken():
    kl = torch.full((60, 4), 1e-3, dtype=torch.float64)
    kl[:6, 1], kl[6:12, 2] = 1.5, 0.02  # a tenth far away, a tenth a little
    rows = torch.zeros(60, 4, dtype=torch.float64)
    rows[6:, 0] = 0.3  # rejecting any of these loses signal
    advice = advise(*batch_of(rows, kl=kl), horizon=4)
    for rule, chosen in advice.recommendations.items():
        enough = [p for p in advice.sweeps[rule] if p.acceptance >= 0.7]
        smallest = min(p.error for p in enough)
        assert chosen.point.threshold == max(p.threshold for p in enough if p.error <= 1.01 * smallest)
    chosen = advice.recommendations["trm_max"]
    assert chosen.needed and chosen.point.acceptance == 0.9
    # Rejecting the next tenth as well would cost more, and keeping the far tenth a tenth more.
    assert chosen.point.error == pytest.approx(0.1403, abs=1e-4)
    assert advice.sweeps["trm_max"][-1].error == pytest.approx(0.1558, abs=1e-4)


def test_a_bound_above_one_promises_nothing_and_is_no_reason_to_leave_out_a_mask():
    chosen = advise(*drift(0.5, exact=True), horizon=40).recommendations["trm_max"]
    assert chosen.point.error > 1 and chosen.needed is None
    assert "which above 1 promises nothing: bring the engine closer" in chosen.reason


@pytest.mark.parametrize("scale", [1e-4, 0.02, 0.06, 0.2])
def test_sampled_thresholds_are_the_published_ones_or_above(scale):
    """Where the published keeps the target at twice the drift it is taken, else the smallest that does."""
    advice = advise(*drift(scale), horizon=40)
    twice = advise(*drift(2 * scale), horizon=40)
    for rule, chosen in advice.recommendations.items():
        assert chosen.acceptance_at_twice >= 0.7 and "without exact KL the error is unknown" in chosen.reason
        if point(twice, rule, PUBLISHED[rule]).acceptance >= 0.71:
            assert chosen.point.threshold == PUBLISHED[rule]
        elif point(twice, rule, PUBLISHED[rule]).acceptance < 0.69:
            assert chosen.point.threshold > PUBLISHED[rule]
            assert chosen.acceptance_at_twice == pytest.approx(0.7, abs=0.01)
            assert f"the usual {PUBLISHED[rule]:g} would keep" in chosen.reason


def test_only_a_noise_floor_allows_a_threshold_below_the_published_one():
    """Numerics reach 2e-4 at most, one rollout in ten 1e-2: twice the noise parts them, .05 would not."""
    rows = torch.full((50, 2), 1e-4, dtype=torch.float64)
    rows[:5] = 1e-2
    noise = sampled_drift(*batch_of(torch.full((50, 2), 2e-4)))
    without, known = (advise(*batch_of(rows), horizon=2, noise=n).recommendations["trm_max"] for n in (None, noise))
    assert without.point.threshold == 0.05 and without.point.acceptance == 1
    # k2 at twice the noise: (4e-4)²/2.
    assert known.point.threshold == pytest.approx(8e-8) and known.point.acceptance == 0.9
    assert "numerics alone reach 2e-08, the noise floor" in known.reason
    far = sampled_drift(*batch_of(torch.full((50, 2), 1.0)))
    assert advise(*batch_of(rows), horizon=2, noise=far).recommendations["trm_max"].point.threshold >= 0.5


def test_advice_prints_as_sentences():
    text = str(advise(*long_and_short(rate=0.005), horizon=200))
    lines = text.splitlines()
    assert len(lines) == 4 and all(line.endswith(".") for line in lines)
    assert lines[0].startswith(
        "TRM-Max: set delta = 0.5, which keeps 100% of the rollouts (target 70%) and 100% at twice"
    )
    assert lines[3].startswith("Acceptance falls with length: TRM-Max at 0.05 (usual)")
    assert "SweepPoint" not in text and "(rule" not in text
    assert str(advise(*drift(1e-3, exact=True), horizon=40)).startswith("TRM-Max: no mask is needed; without one")


def test_empty_responses_do_not_lower_a_threshold():
    """Three of four rollouts are empty; the quantiles are those of the others."""
    rows = torch.full((40, 2), 0.5, dtype=torch.float64)
    rows[:10] *= torch.arange(1, 11)[:, None] / 10
    some = advise(*batch_of(rows[:10]), horizon=2)
    many = advise(*batch_of(rows, lengths=[2] * 10 + [0] * 30), horizon=2)
    for rule, points in some.sweeps.items():
        assert [(p.threshold, p.acceptance) for p in many.sweeps[rule]] == [(p.threshold, p.acceptance) for p in points]
        assert many.recommendations[rule].settings == some.recommendations[rule].settings


def test_noise_floor_is_the_99th_percentile_at_equal_weights_and_limits_the_threshold():
    # 100 calibration rollouts with k2 maxima (i/100)²/2, i = 1..100; the 99th percentile lies between ranks 99 and 100.
    steps = torch.arange(1, 101).double()[:, None] / 100
    noise = sampled_drift(*batch_of(torch.cat([steps, 0 * steps], 1)))
    advice = advise(*batch_of(torch.full((50, 2), 0.01)), horizon=2, noise=noise)
    floor = advice.noise_floor["trm_max"]
    assert 0.99**2 / 2 < floor < 0.5
    chosen = advice.recommendations["trm_max"]
    # Numerics alone exceed the published .05, so the smallest threshold tried above the floor is the floor itself.
    assert chosen.point.threshold == floor
    assert "noise floor" in chosen.reason


def test_sweeps_are_monotone():
    advice = advise(*long_and_short(rate=0.01), horizon=200)
    for points in advice.sweeps.values():
        assert [p.threshold for p in points] == sorted({p.threshold for p in points})
        acceptance, lost = [p.acceptance for p in points], [p.lost_signal for p in points]
        assert acceptance == sorted(acceptance)
        assert lost == sorted(lost, reverse=True)
        assert acceptance[-1] == 1


@pytest.mark.parametrize(("horizon", "published"), [(512, 6.5e-5), (2048, 8.1e-6), (4096, 2.9e-6), (16384, 3.6e-7)])
def test_allowed_kl(horizon, published):
    # The sheet's values solve (4/3) T^1.5 δ = 1, rounded to two digits; ours solves T δ = 1.
    assert allowed_kl(horizon, published=True) == pytest.approx(published, rel=0.02)
    assert allowed_kl(horizon) == pytest.approx(1 / horizon, rel=1e-3)
    at = unified(table(horizon, kl=allowed_kl(horizon, 0.1)))
    assert 0.099 < at.halved.item() <= 0.1


def test_one_token_allows_any_kl():
    assert allowed_kl(1) == pytest.approx(10)


def test_empty_rows_are_not_counted_and_long_ones_carry_more_signal():
    advice = advise(*batch_of([[0.5, 0], [0.0, 0], [0.5, 0.5]], lengths=[2, 1, 0]), horizon=2)
    assert point(advice, "trm_max", 0.05).acceptance == 0.5
    assert point(advice, "trm_max", 0.05).lost_signal == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("error", "call", "words"),
    [
        (ConfigError, lambda: advise(*batch_of([[0.1]]), horizon=1, target_acceptance=0.0), "target_acceptance is 0"),
        (DataError, lambda: advise(*batch_of([[0.1, 0.1]]), horizon=1), "horizon is 1 for a batch of 1"),
        (DataError, lambda: advise(*batch_of([[0.1]], lengths=[0]), horizon=4), "at least one rollout"),
        (ConfigError, lambda: allowed_kl(8, 0.0), "finite numbers above 0"),
    ],
)
def test_bad_input_is_named(error, call, words):
    with pytest.raises(error, match=words):
        call()

"""The sample's advice: masks against plain computations, certificates, and silence where nothing can be said."""

import dataclasses

import numpy as np
import pytest

from holdfast.audit.judge.advice import advise_on
from holdfast.audit.simulate import FAULTS
from holdfast.core.certificate import certify_rollouts


@pytest.fixture(scope="module")
def rollouts(small_run):
    return small_run(1, age=2, update=0.1)


@pytest.fixture(scope="module")
def advice(rollouts, audit_of):
    return advise_on(audit_of(rollouts))


def test_mask_shares_are_those_of_the_formulas(rollouts, advice):
    share = {m.preset: m for m in advice.masks}
    ratios = [np.subtract(r.trainer_logprobs, r.rollout_logprobs) for r in rollouts]
    rejected = [(r**2 / 2).max() > 0.05 for r in ratios]
    assert 0 < np.mean(rejected) < 1
    assert share["trm_max"].sequences.value == pytest.approx(np.mean(rejected))
    sizes = np.array([len(r) for r in ratios])
    assert share["trm_max"].tokens.value == pytest.approx(sizes[rejected].sum() / sizes.sum())
    average = [(np.expm1(r) - r).mean() > 0.001 for r in ratios]
    assert share["trm_avg"].sequences.value == pytest.approx(np.mean(average), abs=0.03)
    joined = np.exp(np.concatenate(ratios))
    assert share["icepop"].tokens.value == pytest.approx(((joined < 0.5) | (joined > 5)).mean(), abs=1e-4)
    assert share["dppo_kl"].tokens.value > 0 == share["dppo_kl"].sequences.value
    assert all(0 <= m.tokens.low <= m.tokens.value <= m.tokens.high <= 1 for m in advice.masks)


def test_bounds_under_masks(rollouts, advice):
    kl = np.array([sum(r.kl_exact) for r in rollouts])
    free = next(b for b in advice.bounds_at if b.mask == "no mask")
    assert free.error.value == pytest.approx(kl.mean(), rel=1e-4)
    assert free.acceptance.value == 1 and free.acceptance.low < 1
    published = next(b for b in advice.bounds_at if "published" in b.mask)
    out = np.array([max(r.kl_exact) > 0.05 for r in rollouts])
    gain = [abs(np.expm1(np.subtract(r.trainer_logprobs, r.rollout_logprobs)).sum()) for r in rollouts]
    assert published.acceptance.value == pytest.approx(1 - out.mean())
    assert published.error.value == pytest.approx((kl + out * gain).mean(), rel=1e-4)
    assert len(advice.bounds_at) == 4


def test_the_certificate_is_that_of_the_core(rollouts, advice):
    unique = [dataclasses.replace(r, group_id=r.step * 1000 + r.group_id) for r in rollouts]
    expected = certify_rollouts(unique)
    assert advice.certificate.verdict == expected.verdict
    assert advice.certificate.units == 18
    errors = advice.certified_errors
    assert len(errors) > 3
    assert all(e.upper >= e.estimate for e in errors)
    assert [e.threshold for e in errors] == sorted(e.threshold for e in errors)


def test_without_exact_kl_there_is_advice_but_no_bound(rollouts, audit_of):
    lean = [dataclasses.replace(r, kl_exact=None) for r in rollouts]
    found = advise_on(audit_of(lean))
    assert found.bounds == {} and found.certified_errors == ()
    assert found.advice.recommendations["trm_max"].settings["detector"] == "k2"
    assert all(b.error is None for b in found.bounds_at)
    assert any("kl_exact" in text for text in found.missing)
    assert not found.certificate.certified


def test_an_upper_bound_of_tv_gives_bounds_without_a_mask_and_the_certificate(rollouts, audit_of, top_k_of):
    """path, by its definition: Σ_t |ρ_t - 1| Σ_{k>t} TV_k Π_{t<s<k} min(1, ρ_s)."""
    bounded = top_k_of(rollouts)
    found = advise_on(audit_of(bounded))
    paths = []
    for r in bounded:
        ratio = np.exp(np.subtract(r.trainer_logprobs, r.rollout_logprobs))
        pairs = [(t, k) for k in range(len(ratio)) for t in range(k)]
        parts = [abs(ratio[t] - 1) * r.tv_upper[k] * np.minimum(1, ratio[t + 1 : k]).prod() for t, k in pairs]
        paths.append(sum(parts))
    assert found.bounds["path"] == pytest.approx(np.mean(paths), rel=1e-4)
    unique = [dataclasses.replace(r, group_id=r.step * 1000 + r.group_id) for r in bounded]
    assert found.certificate.verdict == certify_rollouts(unique).verdict and set(found.certificate.bounds) == {"path"}
    assert found.certified_errors == () and all(b.error is None for b in found.bounds_at)
    assert found.advice.recommendations["trm_max"].settings["detector"] == "k2"
    assert any("bound it from below only" in text and "rest on the upper bound of TV" in text for text in found.missing)


@pytest.mark.slow
def test_a_lower_bound_of_kl_feeds_no_bound(rollouts, audit_of, top_k_of):
    """Whatever it says, nothing changes: only what rests on the upper bound of TV is given."""
    bounded = top_k_of(rollouts)
    none = [dataclasses.replace(r, kl_lower=(0.0,) * len(r.kl_lower)) for r in bounded]
    first, second = advise_on(audit_of(bounded)), advise_on(audit_of(none))
    assert first.bounds == second.bounds and first.certificate == second.certificate
    assert first.bounds_at == second.bounds_at and first.advice.sweeps == second.advice.sweeps


def test_a_data_error_withholds_all_of_it(small_run, audit_of):
    fault = FAULTS["nan"]
    broken = fault.apply(small_run(1), fault.strengths[-1], np.random.default_rng(0))
    audit = audit_of(broken)
    assert any(f.invalidates for f in audit.findings)
    found = advise_on(audit)
    assert found.advice is None and found.masks == ()
    assert "Fix the log first" in found.missing[0]


def test_logs_without_trainer_or_reward(rollouts, audit_of):
    lone = [dataclasses.replace(r, trainer_logprobs=None, kl_exact=None) for r in rollouts]
    assert "both engine and trainer" in advise_on(audit_of(lone)).missing[0]
    unpaid = advise_on(audit_of([dataclasses.replace(r, reward=None) for r in rollouts]))
    assert unpaid.certificate is None
    assert any("reward" in text for text in unpaid.missing)


def test_rewards_outside_the_unit_interval_widen_the_range(rollouts, audit_of):
    wide = [dataclasses.replace(r, reward=5.0 * r.reward - 2) for r in rollouts]
    assert advise_on(audit_of(wide)).reward_range == (-2.0, 3.0)


def test_a_prompt_number_of_another_step_is_another_prompt(rollouts, audit_of):
    repeated = [dataclasses.replace(r, group_id=r.group_id % 6) for r in rollouts]
    assert advise_on(audit_of(repeated)).certificate.units == 18

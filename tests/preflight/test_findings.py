"""How grave a cause is: by the KL that goes with it, never less than a warning for a fault of the settings."""

import dataclasses

import pytest

from holdfast.audit.measure.estimate import Estimate
from holdfast.preflight.causes import Cause
from holdfast.preflight.findings import findings_of
from holdfast.preflight.gap import Change, Gap
from holdfast.preflight.stability import Repeat
from holdfast.preflight.sync import SyncCheck


def exact(value):
    return Estimate(float(value), float(value), float(value))


def cause(name, share, kl, fix=None, **more):
    left = Gap(exact(0.01), exact(0.0), 5000)
    share = share if isinstance(share, Estimate) else exact(share)
    return Cause(name, "measured", "it was switched", Change(left, share, exact(kl)), fix, **more)


def found(healthy, *causes, gap=0.05, kl=0.001, sync=None, again=None, precision="bfloat16"):
    audit = dataclasses.replace(healthy.audit, findings=(), unjudged=())
    stable = dataclasses.replace(healthy.stability, again=again or healthy.stability.again)
    measured = Gap(exact(gap), exact(kl), 5000)
    sync = sync or SyncCheck("not tried", "left out")
    return {f.name: f for f in findings_of(audit, measured, causes, sync, stable, precision)}


@pytest.mark.parametrize(
    ("name", "fix", "kl", "severity"),
    [
        ("head precision", None, 0.001, "info"),
        ("head precision", None, 0.003, "warning"),
        ("head precision", None, 0.02, "critical"),
        ("temperature", "sampling_support", 0.001, "warning"),
        ("temperature", "sampling_support", 0.02, "critical"),
        ("truncation", None, 0.001, "info"),
    ],
)
def test_a_cause_is_as_grave_as_the_kl_that_goes_with_it(healthy, name, fix, kl, severity):
    made = found(healthy, cause(name, 0.8, kl, fix))[name.replace(" ", "_")]
    assert made.severity == severity
    assert "makes 80% of the gap" in made.headline
    assert bool(made.settings) == (fix is not None)


def test_a_fault_within_the_noise_and_a_share_by_chance_are_no_warning(healthy):
    assert (
        found(healthy, cause("temperature", 0.8, 1e-6, "sampling_support"), gap=0.005)["temperature"].severity == "info"
    )
    assert "head_precision" not in found(healthy, cause("head precision", 0.09, 0.02))


def test_what_another_run_would_do_is_worth_a_word(healthy):
    supposed = cause("chat template", 0.9, 0.5, "token_ids_not_text", supposed=True)
    assert found(healthy, supposed)["chat_template"].severity == "info"


def test_a_large_gap_that_nothing_explains_is_other_weights(healthy):
    assert "other_weights" in found(healthy, cause("head precision", 0.01, 0.0), gap=0.2)
    assert "other_weights" not in found(healthy, cause("head precision", 0.9, 0.0), gap=0.2)
    assert "other_weights" not in found(healthy, gap=0.14)
    # numerics of float32 explain .02, those of a coarse engine no more than .15
    assert "other_weights" in found(healthy, gap=0.03, precision="float32")
    assert "other_weights" in found(healthy, gap=0.2, precision=None)


def test_syncs_that_fail_or_stamp_another_version_are_told(healthy):
    broken = found(healthy, sync=SyncCheck("failed", "the server hung up"))["weight_sync"]
    assert broken.severity == "critical" and "the server hung up" in broken.headline
    assert found(healthy, sync=SyncCheck("synced", "", version=0))["weight_version"].severity == "warning"
    assert "weight_version" not in found(healthy, sync=SyncCheck("synced", "", version=1))


def test_responses_that_differ_are_told_without_alarm(healthy):
    again = found(healthy, again=Repeat("the same call twice", 16, 12, 0.02, 5))["determinism"]
    assert again.severity == "info" and "12 of 16 responses are the same, the first from token 5 on" in again.headline


def test_what_an_interval_leaves_open_is_not_claimed(healthy):
    assert "head_precision" in found(healthy, cause("head precision", Estimate(0.5, 0.11, 0.9), 0.02))
    assert "head_precision" not in found(healthy, cause("head precision", Estimate(0.5, 0.09, 0.9), 0.02))
    # what may be half of the gap may explain it
    assert "other_weights" not in found(healthy, cause("head precision", Estimate(0.3, 0.05, 0.51), 0.0), gap=0.2)
    assert "other_weights" in found(healthy, cause("head precision", Estimate(0.3, 0.05, 0.49), 0.0), gap=0.2)


@pytest.mark.parametrize(("low", "told"), [(0.0151, True), (0.0149, False)])
def test_weights_that_came_back_are_told_by_intervals_that_lie_apart(healthy, low, told):
    """1.25 times the upper end before is .015."""
    before, after = (Gap(size, exact(0.0), 5000) for size in (Estimate(0.01, 0.008, 0.012), Estimate(0.02, low, 0.03)))
    sync = SyncCheck("synced", "", version=1, before=before, after=after)
    assert ("weights_not_restored" in found(healthy, sync=sync)) == told


@pytest.mark.parametrize(
    ("share", "kl", "named"),
    [(Estimate(0.9, 0.51, 1.0), 0.1, True), (Estimate(0.9, 0.49, 1.0), 0.1, False), (exact(0.9), 1e-4, False)],
)
def test_other_weights_are_what_a_sync_surely_takes_away(healthy, monkeypatch, share, kl, named):
    part = cause("sync", share, kl).change
    monkeypatch.setattr("holdfast.preflight.findings.weights_part", lambda check: part)
    assert ("other_weights" in found(healthy)) == named


@pytest.mark.parametrize(
    ("gap", "kl", "usual", "severity"),
    [
        (0.05, 0.001, 0.03, "info"),
        (0.05, 0.003, 0.03, "warning"),
        (0.1, 0.003, 0.03, "info"),
        (0.1, 0.003, None, "warning"),
    ],
)
def test_a_precision_that_is_seen_is_as_grave_as_a_gap_of_its_size(healthy, gap, kl, usual, severity):
    seen = Cause("engine precision", "seen", "the server says so", usual=usual)
    assert found(healthy, seen, gap=gap, kl=kl)["engine_precision"].severity == severity


@pytest.mark.parametrize(
    ("usual", "gap", "named"), [(0.01, 0.031, True), (0.01, 0.029, False), (0.1, 0.16, True), (0.0, 0.021, True)]
)
def test_what_half_precision_makes_of_the_model_is_the_limit_of_a_server(healthy, usual, gap, named):
    """Three times as much, at least what engines in float32 show, .02, and at most .15."""
    told = Cause("engine precision", "not allowed", "", usual=usual)
    assert ("other_weights" in found(healthy, told, gap=gap, precision=None)) == named


def test_coarse_numerics_that_are_seen_may_explain_a_large_gap(healthy):
    made = found(healthy, Cause("KV-cache precision", "seen", "in 8 bits"), gap=0.2, kl=0.03, precision=None)
    assert made["kv-cache_precision"].severity == "warning" and "other_weights" not in made


def test_a_large_gap_is_blamed_on_nothing_where_causes_were_not_looked_for(healthy):
    audit = dataclasses.replace(healthy.audit, findings=(), unjudged=())
    gap, sync = Gap(exact(0.2), exact(0.03), 5000), SyncCheck("not tried", "left out")
    made = {f.name for f in findings_of(audit, gap, (), sync, healthy.stability, None, searched=False)}
    assert "unexplained_gap" in made and "other_weights" not in made

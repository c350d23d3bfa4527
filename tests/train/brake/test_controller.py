"""The controller: what it weighs, what becomes of step and learning rate, and that a resumed run goes on exactly."""

import math

import pytest
import torch

from held_out import brake_config, rollouts_of, seen_by
from holdfast.train.brake import controller as module
from holdfast.train.brake.brake import Brake
from holdfast.train.brake.controller import Controller, Weighed
from holdfast.train.brake.step_gain import StepGain
from holdfast.train.settings.schedule import learning_rate_at


def controller_of(settings, after, monkeypatch, weight=1.0):
    """A controller that sees these log-ratios, of the policy after the step against the one that sampled."""
    controller = object.__new__(Controller)
    controller.config, controller.policy = settings, None
    controller.parameters = [torch.tensor([weight])]
    monkeypatch.setattr(module, "stats_of", lambda *_: seen_by(after, padding=9.0))
    return controller


def weighed(best, z=0.0):
    """A verdict with this c*."""
    return Weighed(8, StepGain(best * 0.1, 0.0, 0.1, 0.2, 5), z)


def test_it_weighs_held_out_responses_by_hand(monkeypatch):
    # Before the step the policy is (2, 1, 20, 1) times as likely to write them as the sampler, and 20 is cut to 10.
    # Δ = (.1, -.2, .05, .1), A = (1, -1, .5, -.5): m = (2 · .1 + .2)/2 = .2, (10 · .5 · .05 - .5 · .1)/2 = .1.
    held = rollouts_of([1.0, 0.0, 1.0, 0.5], [4, 4, 9, 9])
    ratios = [math.log(2), 0.0, math.log(20), 0.0]
    after = [ratio + moved for ratio, moved in zip(ratios, (0.1, -0.2, 0.05, 0.1), strict=True)]
    settings = brake_config("controller", {"brake_z": 0.5})
    found = controller_of(settings, after, monkeypatch).judge(held, seen_by(ratios), 1)
    assert found.found.gain == pytest.approx(0.15, abs=1e-6) and found.found.error == pytest.approx(0.05, abs=1e-6)
    # b = (0, 1, .5, 1): w b Δ² = 0, .04, 10 · .5 · .0025, .01; w Δ² = .02, .04, .025, .01.
    assert found.found.cost == pytest.approx(0.0625 / 4, abs=1e-6)
    assert found.found.fisher == pytest.approx(0.095 / 4, abs=1e-6)
    assert found.best == pytest.approx(0.125 / (0.0625 / 4), abs=1e-3) and not found.braked and found.factor == 2.0
    # With rewards from -1 on there is more to lose: b + 1 = (1, 2, 1.5, 2).
    lower = brake_config("controller", {"brake_z": 0.5, "brake_rewards": [-1.0, 1.0]})
    found = controller_of(lower, after, monkeypatch).judge(held, seen_by(ratios), 1)
    assert found.found.cost == pytest.approx((0.02 + 0.08 + 0.0375 + 0.02) / 4, abs=1e-6)


@pytest.mark.parametrize(
    ("best", "braked", "factor"),
    [(0.0, True, 0.5), (0.3, True, 0.5), (0.5, True, 0.5), (0.51, False, 0.51), (1.7, False, 1.7), (9.0, False, 2.0)],
)
def test_a_step_is_taken_where_its_own_lower_bound_is_above_nothing(best, braked, factor):
    found = weighed(best)
    assert (found.braked, found.factor) == (braked, pytest.approx(factor))
    assert (found.found.lower(1.0, 0.0) > 0) is not braked, "which is to say that c* is above ½"
    assert found.metrics()["brake_best"] == pytest.approx(best)
    assert bool(found.warnings()) is braked


def test_it_says_why_a_step_was_not_taken():
    (said,) = Weighed(8, StepGain(0.1, 0.08, 0.3, 0.6, 5), 0.5).warnings()
    assert said == (
        "brake: the step was not taken: by 8 held-out prompts it gains 0.1 (standard error 0.08) to first order, and "
        "its length may cost 0.15; the learning rate is halved"
    )


def test_what_says_nothing_is_taken_and_leaves_the_rate():
    for found, why in (
        (StepGain(0.0, 0.0, 0.0, 0.5, 0), "rewards differ within 0 of 8 held-out prompts, and it takes 2"),
        (StepGain(0.1, 0.1, 0.1, 0.5, 1), "rewards differ within 1 of 8 held-out prompts, and it takes 2"),
        (StepGain(0.0, 0.0, 0.0, 0.0, 5), "it moved none of the held-out responses"),
    ):
        verdict = Weighed(8, found, 1.0)
        assert (verdict.braked, verdict.factor, verdict.best) == (False, 1.0, None)
        assert "brake_best" not in verdict.metrics() and verdict.metrics()["brake_informed"] == found.informed
        (said,) = verdict.warnings()
        assert said.endswith(why)


def test_steps_without_finite_numbers_are_not_taken(monkeypatch):
    held, before, settings = rollouts_of([1.0, 0.0] * 2, [0, 0, 1, 1]), seen_by([0.0] * 4), brake_config("controller")
    weights = controller_of(settings, None, monkeypatch, weight=float("nan")).judge(held, before, 1)
    policy = controller_of(settings, [0.0, float("nan"), 0.0, 0.0], monkeypatch).judge(held, before, 1)
    for found in (weights, policy):
        assert (found.found, found.braked, found.factor) == (None, True, 0.5)
        assert found.metrics() == {"brake_prompts": 2} and "not finite" in found.warnings()[0]


def test_the_scale_stays_within_its_range():
    settings = brake_config("controller", {"brake_scale_range": [0.3, 1.5]})
    brake = object.__new__(Brake)
    brake.config, brake.scale, brake.in_a_row = settings, 1.0, 0
    seen = []
    for best in (3.0, 0.2, 0.1, 0.0, 0.8, 1.2):
        brake.in_a_row, brake.scale = brake.counted(weighed(best))
        seen.append((brake.in_a_row, round(brake.scale, 9)))
    assert seen == [(0, 1.5), (1, 0.75), (2, 0.375), (3, 0.3), (0, 0.3), (0, 0.36)]


ON = ("--guard.brake", "controller", "--guard.brake_share", "0.5", "--batch.prompts", "16", "--batch.group_size", "4")
TIMES = {"seconds", "cpu_seconds", "tokens_per_cpu_second", "time_split"}
RATE = ("--optimizer.learning_rate", "0.03", "--optimizer.warmup_steps", "2", "--optimizer.schedule", "linear")


def numbers(folder):
    return [{k: v for k, v in record.items() if k not in TIMES} for record in folder.read_metrics()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [(), ("--lora.rank", "4"), ("--async.staleness", "1", "--engine.lag", "0")],
    ids=["all weights", "adapters", "asynchronous"],
)
def test_a_run_scales_its_schedule_and_resumes_bit_for_bit(small_run, small_config, more):
    """At a ruinous rate: its steps are undone, and the schedule goes on underneath."""
    options = (*ON, *RATE, *more, "--checkpoint.every", "1", "--checkpoint.keep", "9")
    whole, summary = small_run("whole", *options)
    lines = numbers(whole)
    assert summary["finished"] and len(lines) == 5
    settings, scale = small_config(*options).optimizer, 1.0
    for record in lines[1:]:
        assert record["learning_rate"] == scale * learning_rate_at(settings, record["step"], 4)
        scale = record["brake_scale"]
        assert record["brake_prompts"] == 8 and record["brake_fisher"] > 0
    assert any(record["braked"] for record in lines[1:]) and lines[-1]["brake_scale"] < 1
    if "--async.staleness" in more:
        return  # what its engine writes depends on when it gets new weights
    asked = iter([False, False, True])
    cut, _ = small_run("cut", *options, stop=lambda: next(asked))
    assert cut.read_metrics()[-1]["brake_scale"] == lines[2]["brake_scale"] != 1.0
    cut, _ = small_run("cut", *options, resume=True)
    assert numbers(cut) == lines


@pytest.mark.slow
def test_an_undone_step_leaves_no_trace_but_a_smaller_rate(small_run, monkeypatch):
    from safetensors.torch import load_file

    from holdfast.train.keep.checkpoint import load_state

    real = Controller.judge
    monkeypatch.setattr(Controller, "judge", lambda self, *given: weighed(0.2) if given[2] == 2 else real(self, *given))
    folder, _ = small_run("run", *ON, "--checkpoint.every", "1", "--checkpoint.keep", "9", "--guard.brake_z", "0")
    steps = [folder.checkpoints / f"step_{n:04d}" for n in (1, 2)]
    one, two = (load_file(step / "model" / "model.safetensors") for step in steps)
    assert all(torch.equal(one[name], two[name]) for name in one)
    states = [load_state(step)["optimizer"]["state"] for step in steps]
    assert all(torch.equal(value, states[1][k][name]) for k, v in states[0].items() for name, value in v.items())
    lines = folder.read_metrics()
    assert lines[2]["brake_scale"] == lines[1]["brake_scale"] / 2 == lines[3]["learning_rate"] / 2e-4

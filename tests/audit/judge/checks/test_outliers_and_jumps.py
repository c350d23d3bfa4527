"""A few sequences, one step, one token: drift and decay that means over a run do not show."""

import dataclasses

import numpy as np
import pytest

from holdfast.audit.judge.checks.data.forced_tokens import ForcedTokens
from holdfast.audit.judge.checks.data.temperature_mismatch import TemperatureMismatch
from holdfast.audit.judge.checks.drift.drift_jump import DriftJump
from holdfast.audit.judge.checks.drift.drift_with_step import DriftWithStep
from holdfast.audit.judge.checks.drift.few_prompts_dominate import FewPromptsDominate
from holdfast.audit.judge.checks.drift.outlier_sequences import OutlierSequences
from holdfast.audit.judge.checks.training.repeated_data import RepeatedData
from holdfast.audit.judge.checks.training.repeated_token import RepeatedToken
from holdfast.audit.simulate import FAULTS, clean_run
from holdfast.types import Rollout


def drifting(i, size, tokens=60, seed=0, **more):
    """A rollout whose log-ratio is ±size, at tokens of log-probability -1."""
    signs = np.random.default_rng([seed, i]).choice([-1.0, 1.0], tokens)
    trainer = tuple((-1 + size * signs).tolist())
    return Rollout((i,), tuple(range(tokens)), (-1.0,) * tokens, trainer, **more)


def test_outliers_are_counted_named_and_compared(look):
    run = [drifting(i, 0.4 if i % 25 == 3 else 0.02, environment="far" if i % 25 == 3 else "near") for i in range(200)]
    (got,) = look(OutlierSequences, run)
    assert got.headline.startswith("8 of 200 sequences (4.0%) drift 20 times as much as the median one")
    assert "100% of them have environment far (of all: 4%)" in got.headline
    assert set(got.where.sequences) <= {3 + 25 * k for k in range(8)}
    # k3 of ±.4: cosh(.4) - 1 = .0811; of ±.02: .0002; 8 of 200 carry 8 · .0811 / (8 · .0811 + 192 · .0002) = .944
    assert got.evidence["share of the divergence"] == pytest.approx(0.944, abs=0.01)


def test_what_is_no_outlier(look):
    assert look(OutlierSequences, [drifting(i, 0.02 * (1 + i % 4)) for i in range(200)]) == []  # a spread of its own
    assert look(OutlierSequences, [drifting(i, 0.4 if i % 3 == 0 else 0.02) for i in range(200)]) == []  # a third
    assert look(OutlierSequences, [drifting(i, 0.4 if i < 2 else 0.02) for i in range(200)]) == []  # two
    assert look(OutlierSequences, [drifting(i, 0.1 if i < 8 else 0.002) for i in range(200)]) == []  # KL .005


def test_one_wild_token_makes_no_outlier(look):
    def wild(i):
        rollout = drifting(i, 0.02)
        values = list(rollout.trainer_logprobs)
        values[7] -= 9.0
        return dataclasses.replace(rollout, trainer_logprobs=tuple(values))

    assert look(OutlierSequences, [wild(i) if i < 8 else drifting(i, 0.02) for i in range(200)]) == []


def stepped(sizes, prompts=12, **more):
    return [
        drifting(100 * step + i, size, seed=step, step=step + 40, group_id=100 * step + i, **more)
        for step, size in enumerate(sizes)
        for i in range(prompts)
    ]


def test_a_jump_that_stays(look):
    run = [dataclasses.replace(r, reward=1.0 if r.step < 41 else 0.0) for r in stepped([0.02] + [0.4] * 5)]
    (got,) = look(DriftJump, run)
    assert got.severity == "critical"
    assert got.headline.startswith("drift jumps at step 41 to 20 times that of step 40")
    assert got.headline.endswith("and stays there; the reward goes from 1 to 0")
    assert got.where.steps == (41, 42, 43, 44, 45)


def test_one_bad_step(look):
    (got,) = look(DriftJump, stepped([0.02, 0.02, 0.02, 0.4, 0.02, 0.02]))
    assert "at 1 step in all" in got.headline
    assert got.where.steps == (43,)


@pytest.mark.parametrize("sizes", [
    [0.02, 0.03, 0.045, 0.07, 0.1, 0.15, 0.22, 0.33],  # gradual
    [0.4] * 6,  # everywhere
    [0.001, 0.004, 0.004],  # a KL of 8e-6
    [0.02, 0.02, 0.05, 0.02],  # 2.5 times
])  # fmt: skip
def test_what_is_no_jump(look, sizes):
    assert look(DriftJump, stepped(sizes)) == []


def test_staleness_that_sets_in_is_no_jump(look):
    """The first step is fresh, all others one version old: at equal freshness there is no jump."""
    run = [
        dataclasses.replace(r, weight_versions=(max(0, r.step - 41),) * len(r.response_ids))
        for r in stepped([0.02] + [0.2] * 5)
    ]
    assert look(DriftJump, run) == []
    assert len(look(DriftJump, [dataclasses.replace(r, weight_versions=None) for r in run])) == 1


def test_one_token_over_and_over_has_one_cause(look, faulty):
    broken = faulty("one_token", 3.0)
    (got,) = look(RepeatedToken, broken)
    assert got.severity == "critical"
    assert got.headline == "192 of 192 responses from step 6 on are one token over and over, always id 0"
    assert look(RepeatedData, broken) == []
    assert look(ForcedTokens, broken) == []


def test_healthy_responses_hold_several_tokens(look, healthy):
    assert look(RepeatedToken, healthy()) == []
    same = [Rollout((i,), (5,) * 15, (-0.5,) * 15) for i in range(10)]  # fifteen tokens are an answer
    assert look(RepeatedToken, same) == []
    (got,) = look(RepeatedToken, [Rollout((i,), (i % 2,) * 16, (-0.5,) * 16) for i in range(10)])
    assert "most often id" in got.headline and "from step" not in got.headline


def test_prompts_without_a_gradient_do_not_count(look):
    """Sixty groups of which three still have advantages: these three are all there is, not one in twenty."""
    run = [drifting(i, 0.02, 300, advantages=(1.0 if i < 3 else 0.0,) * 300, group_id=i, step=1) for i in range(60)]
    assert look(FewPromptsDominate, run) == []
    run = [drifting(i, 0.02, 300, advantages=(50.0 if i == 0 else 0.1,) * 300, group_id=i, step=1) for i in range(60)]
    (got,) = look(FewPromptsDominate, run)
    assert "1 of 60 prompts" in got.headline


def test_a_frozen_engine_is_not_at_another_temperature(look):
    fault = FAULTS["frozen_engine"]
    healthy = clean_run(3, **{"mean_length": 100, "age": 0, **fault.run})
    frozen = fault.apply(healthy, 7.0, np.random.default_rng(0))
    assert look(TemperatureMismatch, frozen) == []
    (got,) = look(DriftWithStep, frozen)
    assert "as if the engine kept old weights" in got.headline

"""Warnings in plain words, with the number that would change things."""

import pytest
import torch

from holdfast import Batch, TokenStats, preset
from holdfast.train.show.advice import fitted_thresholds, ratio_warnings, step_warnings
from holdfast.train.update import Updated

CALM = {
    "reward_std": 0.5,
    "reward_mean": 0.5,
    "masked_sequences": 0.0,
    "masked_tokens": 0.0,
    "masked_by_length": [0.0, 0.0, 0.0, 0.0],
    "length_quartiles": [2.0, 3.0, 4.0],
    "length_counts": [8, 8, 8, 8],
    "truncated_share": 0.0,
}


def updated(log_ratios, advantage=1.0):
    """Sequences of two tokens with these log-ratios against the rollout policy."""
    ratios = torch.tensor(log_ratios)
    mask = torch.ones(ratios.shape, dtype=torch.bool)
    rollout = torch.full(ratios.shape, -5.0)
    batch = Batch(
        advantages=torch.full(ratios.shape, advantage), response_mask=mask, rollout_logprobs=rollout,
        turn_ids=torch.zeros(ratios.shape, dtype=torch.long), sequence_ids=torch.arange(len(ratios)),
    )  # fmt: skip
    return Updated(batch, TokenStats(logprobs=rollout + ratios), mask, {}, {})


SOME = updated([[0.0, 0.1], [0.2, 0.0], [0.0, -0.3], [0.4, 0.0], [0.0, 0.5]])


def test_an_ordinary_step_gets_no_warning():
    assert step_warnings(CALM, preset("trm"), SOME) == []


def test_equal_rewards():
    (warning,) = step_warnings(CALM | {"reward_std": 0.0, "reward_mean": 1.0}, preset("ppo"), SOME)
    assert warning.startswith("all rewards equal 1:")
    (warning,) = step_warnings(CALM, preset("ppo"), updated([[0.0, 0.1]], advantage=0.0))
    assert warning.startswith("rewards equal within every group")


def test_thresholds_that_would_have_kept_a_share():
    # max k2 per sequence: .1²/2, .2²/2, .3²/2, .4²/2, .5²/2; the 75 % quantile of five is the fourth: .08.
    assert fitted_thresholds(preset("trm_max"), SOME, kept=0.75) == {"delta": pytest.approx(0.08)}
    # mean k3 of the fourth sequence: (e^.4 - 1 - .4)/2 = .0459.
    fitted = fitted_thresholds(preset("trm_avg"), SOME, kept=0.75)
    assert fitted == {"delta_avg": pytest.approx((1.4918247 - 1.4) / 2, rel=1e-4)}
    assert set(fitted_thresholds(preset("trm"), SOME)) == {"delta", "delta_avg"}
    assert fitted_thresholds(preset("ppo"), SOME) == {}


def test_everything_masked_names_the_threshold():
    everything = CALM | {"masked_sequences": 1.0, "masked_tokens": 1.0, "masked_by_length": [1.0] * 4}
    (warning,) = step_warnings(everything, preset("trm_max"), SOME)
    # 70 % of five: between the third (.045) and the fourth (.08), a fifth of the way from .08: .073.
    assert warning == "every sequence masked: no gradient; raise delta to 0.073 to keep 70% of this step"
    (warning,) = step_warnings(everything, preset("ppo"), SOME)
    assert warning.endswith("loosen the masks")
    (warning,) = step_warnings(everything | {"masked_sequences": 0.0}, preset("ppo"), SOME)
    assert warning.startswith("every token masked")


def test_acceptance_that_falls_with_length():
    rises = CALM | {"masked_by_length": [0.1, 0.2, 0.3, 0.4]}
    # Of 8 responses each .82 and .58, standard error .198: chance explains that. Of 32 .876 and .594, .101.
    assert step_warnings(rises, preset("trm_max"), SOME) == []
    (warning,) = step_warnings(rises | {"length_counts": [32] * 4}, preset("trm_max"), SOME)
    assert "90% of the shortest quarter is kept, 60% of the longest" in warning and "trm_avg" in warning
    falls = CALM | {"masked_by_length": [0.0, None, None, 1.0]}
    for counts in ([31, 0, 0, 1], [3, 0, 0, 3], [100, 0, 0, 13]):
        assert step_warnings(falls | {"length_counts": counts}, preset("trm_max"), SOME) == []
    assert step_warnings(falls | {"length_counts": [28, 0, 0, 4]}, preset("trm_max"), SOME)
    for gone in (0, 3):
        shares = [0.1, 0.2, 0.3, 0.4]
        shares[gone] = None
        assert step_warnings(CALM | {"masked_by_length": shares}, preset("trm_max"), SOME) == []
    assert step_warnings(CALM | {"masked_by_length": [0.4, 0.3, 0.2, 0.1]}, preset("trm_max"), SOME) == []


def test_truncated_responses():
    (warning,) = step_warnings(CALM | {"truncated_share": 0.75}, preset("ppo"), SOME)
    assert warning == "75% of responses were cut off at sampling.max_tokens"


@pytest.mark.parametrize("name", ["ppo", "grpo", "gspo", "sspo", "kl_cov"])
def test_a_clip_that_cannot_act_is_said(name):
    """With one update the old policy is the trainer itself: its clip idles while the engine drifts away."""
    warning = ratio_warnings(preset(name), 1)[0]
    assert "the ratio θ/old is exactly 1" in warning and "objective.denominator = 'rollout'" in warning
    assert ratio_warnings(preset(name), 2) == []
    assert ratio_warnings(preset(name, denominator="rollout"), 1) == []


@pytest.mark.parametrize("name", ["trm", "tis", "reinforce", "decoupled_ppo", "trm+sspo+kl_cov"])
def test_corrected_or_ratio_free_objectives_are_not_warned_of(name):
    assert ratio_warnings(preset(name), 1) == []


@pytest.mark.parametrize(
    ("name", "part", "cure"),
    [
        ("grpo+kl_cov", "kl_cov", {"denominator": "rollout"}),
        ("tis+kl_cov", "kl_cov", {"kl_cov.policy": "rollout"}),
        ("dro", "kl", {"kl.policy": "rollout"}),
        ("trm_max+dro", "kl", {"kl.policy": "rollout"}),
    ],
)
def test_a_penalty_that_cannot_act_is_said_with_its_cure(name, part, cure):
    objective = preset(name)
    (setting,) = (f"{key} = {value!r}" for key, value in cure.items())
    warning = ratio_warnings(objective, 1)[-1]
    assert f"and {part} cannot act (no gradient changes): raise batch.minibatches or batch.epochs" in warning
    assert f"for {part} set {setting}" in warning
    assert ratio_warnings(objective, 2) == []
    assert not any("cannot act (" in warning for warning in ratio_warnings(objective.with_(**cure), 1))


def test_a_weight_that_counts_the_ratio_again_is_said_where_several_updates_move_it():
    objective = preset("opsm", weights=[{"kind": "importance_weight", "numerator": "current"}])
    assert ratio_warnings(objective, 1) == []
    (warning,) = ratio_warnings(objective, 2)
    assert "the weight θ/rollout limited to [0, 2] and the ratio θ/old both count θ/old" in warning

"""Traps are found in the config that verl really composes, and nowhere else."""

import pytest

from holdfast import ConfigError
from holdfast.integrations.verl import __main__ as command
from holdfast.integrations.verl import traps
from holdfast.integrations.verl.composed import composed, report
from holdfast.integrations.verl.names import POLICY_LOSS, advantage_overrides, loss_overrides
from holdfast.integrations.verl.names import with_settings as objective

# Hydra 1.3 calls what OmegaConf 2.4 deprecates.
pytestmark = [pytest.mark.filterwarnings(f"ignore:{old}") for old in ("register_new_resolver", "Implicit conversion")]

ACTOR, CORRECTION = "actor_rollout_ref.actor", "algorithm.rollout_correction"
BASE = [
    f"{ACTOR}.ppo_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.model.path=model",
    "actor_rollout_ref.rollout.calculate_log_probs=true",
    "algorithm.adv_estimator=grpo",
]
RS, THRESHOLD = f"{CORRECTION}.rollout_rs", f"{CORRECTION}.rollout_rs_threshold"
GAE = "algorithm.adv_estimator=gae"
OURS = [*BASE, f"{POLICY_LOSS}.loss_mode=holdfast_grpo"]
LEVEL_2 = [*BASE, "trainer.v1.trainer_mode=holdfast_sync"]


def found(*overrides):
    return [str(trap) for trap in traps.find(composed([*BASE, *overrides]))]


def test_a_sound_config_has_no_trap():
    assert found() == []
    assert found(f"{POLICY_LOSS}.loss_mode=holdfast_grpo") == []
    assert found(f"{CORRECTION}.rollout_is=token") == []
    precision = f"+{ACTOR}.fsdp_config.mixed_precision.param_dtype"
    assert found(f"{precision}=fp32") == found(f"{ACTOR}.fsdp_config.dtype=float16", f"{precision}=fp16") == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            [f"{CORRECTION}.bypass_mode=true", f"{CORRECTION}.rollout_is=token"],
            ["bypass_mode=true with rollout_is: the v1 trainer then computes neither weights nor masks"],
        ),
        (
            [f"{CORRECTION}.rollout_is=token", "actor_rollout_ref.rollout.calculate_log_probs=false"],
            ["rollout_is with rollout.calculate_log_probs=false: the engine reports no log-probabilities"],
        ),
        (
            # k1 = −log(train/rollout) in [log .5, log 1.2]: train/rollout in [1/1.2, 1/.5] = [.833, 2]
            [f"{RS}=seq_mean_k1", f"{THRESHOLD}=0.5_1.2", GAE],
            ["train/rollout is kept in [0.833, 2], not in [0.5, 1.2]. For train/rollout in [0.5, 1.2] set 0.8333_2"],
        ),
        (
            # e^√(2·2.5) = e^2.236 = 9.36
            [f"{RS}=seq_max_k2", f"{THRESHOLD}=2.5", GAE],
            ["a threshold on a ratio of 9.36: next to nothing is rejected"],
        ),
        (
            [f"{RS}=seq_max_k2", f"{THRESHOLD}=0.05"],
            ["rejected responses still count in the baseline of their group"],
        ),
        (
            [f"{RS}=token_k2", f"{THRESHOLD}=0.05", GAE],
            ["the reward on it is masked too"],
        ),
        ([f"{ACTOR}.clip_ratio=0.3"], ["actor.clip_ratio=0.3: nothing reads it"]),
        ([f"{POLICY_LOSS}.loss_mode=dppo_tv"], ["DPPO's cap on the ratio is this value, not the 20"]),
        ([f"{POLICY_LOSS}.loss_mode=geo_mean"], ["grows with the number of micro-batches. loss_mode=holdfast_gmpo"]),
        ([f"{POLICY_LOSS}.loss_mode=kl_cov"], ["its statistics are those of a micro-batch"]),
        (
            [f"{POLICY_LOSS}.loss_mode=holdfast_grpo", f"{ACTOR}.clip_ratio_high=0.28"],
            ["actor.clip_ratio_high=0.28 with loss_mode=holdfast_grpo: the objective has its own clip"],
        ),
        (
            [f"{ACTOR}.fsdp_config.dtype=float16"],
            ["fsdp_config.dtype=float16: verl's FSDP engine does not read it and computes in bfloat16. Set "
             f"+{ACTOR}.fsdp_config.mixed_precision.param_dtype=float16"],
        ),
        (
            [f"{ACTOR}.fsdp_config.dtype=float16", f"+{ACTOR}.fsdp_config.mixed_precision.param_dtype=fp32"],
            ["computes in float32"],
        ),
        (["actor_rollout_ref.rollout.top_p=0.9"], ["top_p=0.9: the engine samples from a truncated distribution"]),
        (
            [f"{POLICY_LOSS}.loss_mode=holdfast_rloo"],
            ["algorithm.adv_estimator=grpo: verl estimates the advantages, and rloo asks for others"],
        ),
        ([f"{POLICY_LOSS}.loss_mode=holdfast_reinforce"], ["verl has no estimator for A = R"]),
        (
            [f"{POLICY_LOSS}.loss_mode=holdfast_tis", f"{CORRECTION}.bypass_mode=true"],
            ["old is the rollout, so every weight old/rollout is 1"],
        ),
        (
            [f"{POLICY_LOSS}.loss_mode=holdfast_grpo", f"{ACTOR}.ppo_mini_batch_size=1024"],
            ["every ratio θ/old is 1: a clip on it cannot act"],
        ),
        (
            [f"{POLICY_LOSS}.loss_mode=holdfast_dro", f"{ACTOR}.ppo_mini_batch_size=1024"],
            ["with dro: old is then the trainer itself, and kl cannot act: no gradient changes. Set "
             f"actor.ppo_mini_batch_size below data.train_batch_size, or +{POLICY_LOSS}.settings.kl.policy=rollout"],
        ),
        (
            [f"{POLICY_LOSS}.loss_mode=holdfast_kl_cov", f"{ACTOR}.ppo_mini_batch_size=1024"],
            ["and kl_cov cannot act: no gradient changes. Set actor.ppo_mini_batch_size below data.train_batch_size, "
             f"or +{POLICY_LOSS}.settings.denominator=rollout"],
        ),
        (
            loss_overrides("opsm", {"weights": [{"kind": "importance_weight", "numerator": "current"}]}),
            ["several updates per batch with opsm: the weight θ/rollout limited to [0, 2] and the ratio θ/old both"],
        ),
    ],
)  # fmt: skip
def test_each_trap_is_found_alone(overrides, expected):
    lines = found(*overrides)
    assert len(lines) == len(expected)
    assert all(part in line for part, line in zip(expected, lines, strict=True)), lines


def test_the_flagship_has_no_idle_part():
    once = f"{ACTOR}.ppo_mini_batch_size=1024"
    assert not any("cannot act" in trap for trap in found(*loss_overrides("trm+sspo+kl_cov"), once))
    assert found(f"{POLICY_LOSS}.loss_mode=holdfast_kl_cov") == []  # several updates per batch


def test_one_threshold_serves_every_mode_and_several_their_own():
    modes = f"{RS}='seq_max_k2,seq_mean_k3'"
    assert len(found(modes, f"{THRESHOLD}=0.3", GAE)) == 2
    assert len(found(modes, f"{THRESHOLD}='0.05,0.3'", GAE)) == 1


@pytest.mark.parametrize("value", ["a b", "it's", "back\\slash", "end\\", "q\\'q", "true", "1", "/shared/run-1", ""])
def test_strings_survive_hydras_grammar(value):
    loss = composed([*BASE, *loss_overrides("grpo", records=value)]).actor_rollout_ref.actor.policy_loss
    assert loss.records == value


def refusal(*overrides):
    with pytest.raises(ConfigError) as caught:
        list(report(composed([*LEVEL_2, *overrides])))
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "loss_mode=vanilla: the mode trains with Holdfast's objectives only"),
        ([f"{POLICY_LOSS}.loss_mode=holdfast_trm", f"{CORRECTION}.rollout_is=token"], "rollout_is=token would correct"),
        ([f"{POLICY_LOSS}.loss_mode=holdfast_trm", f"{CORRECTION}.bypass_mode=true"], "set both, or neither"),
        (
            [f"{POLICY_LOSS}.loss_mode=holdfast_trm", "actor_rollout_ref.rollout.calculate_log_probs=false"],
            "level 2: 'trm' needs rollout_logprobs: the engine gives none",
        ),
        ([*loss_overrides("trm", baseline="accepted", top_k=True)], "baseline=accepted needs the verdict before"),
        (
            [*loss_overrides("trm", top_k=True), "actor_rollout_ref.model.use_fused_kernels=true"],
            "needs logits, which model.use_fused_kernels=true never makes",
        ),
        (
            [*loss_overrides("trm", top_k=True), f"{ACTOR}.ulysses_sequence_parallel_size=2"],
            "needs whole sequences on each rank: ulysses_sequence_parallel_size=2",
        ),
        (
            [*loss_overrides("trm", {"normalize": {"over": "accepted"}}, top_k=True)],
            "top_k=true with normalize over 'accepted'",
        ),
    ],
)
def test_level_2_refuses_by_name(overrides, expected):
    assert expected in refusal(*overrides)


def test_level_2_explains_what_it_trains():
    overrides = loss_overrides("trm+sspo+kl_cov", {"delta": 0.05, "anneal": {"shape": "cosine", "steps": 50.0}})
    (text,) = report(composed([*LEVEL_2, *overrides, *advantage_overrides(objective("sspo", {}))]))
    assert "max_t k2_t(θ‖rollout) ≤ 0.05" in text and "cos(πk/50)" in text


def test_the_command_checks_a_command_line(capsys):
    assert command.main(OURS) == 0
    assert "min(r, 1.2)" in capsys.readouterr().out
    assert command.main([*OURS, f"{ACTOR}.clip_ratio_low=0.1"]) == 1
    assert "does not read these" in capsys.readouterr().out
    assert command.main([*BASE, f"{POLICY_LOSS}.loss_mode=holdfast_trm"]) == 2
    assert "level 1: 'trm' needs rollout_logprobs" in capsys.readouterr().err

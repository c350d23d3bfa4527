"""Traps are found in the config that verl really composes, and nowhere else."""

import inspect

import numpy as np
import pytest
import torch
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import agg_loss, get_adv_estimator_fn
from verl.trainer.ppo.rollout_corr_helper import (
    SUPPORTED_ROLLOUT_RS_OPTIONS,
    _parse_rollout_is_threshold,
    compute_rollout_rejection_mask,
)

from holdfast import ConfigError
from holdfast.integrations.verl import __main__ as command
from holdfast.integrations.verl.check import correction, traps
from holdfast.integrations.verl.check.composed import composed, report
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
            ["rollout_rs=token_k2 with adv_estimator=gae: where the last token is masked, the reward on it is masked"],
        ),
        (
            [f"{POLICY_LOSS}.loss_mode=gspo"],
            ["loss_mode=gspo with actor.loss_agg_mode=token-mean: the sequences' losses are averaged over tokens"],
        ),
        (
            [f"{ACTOR}.loss_agg_mode=seq-mean-token-sum-norm", "data.max_response_length=8192"],
            ["without loss_scale_factor: each micro-batch is divided by its own longest response, so the split into "
             "micro-batches changes the gradient. Set actor.loss_scale_factor=8192"],
        ),
        (
            [f"{POLICY_LOSS}.loss_mode=holdfst_dapo"],
            ["loss_mode=holdfst_dapo: nothing of this name is registered; verl refuses it only after the first "
             "rollout. Did you mean holdfast_dapo"],
        ),
        (["algorithm.adv_estimator=grppo"], ["algorithm.adv_estimator=grppo: nothing of this name is registered"]),
        (["trainer.v1.trainer_mode=holdfast_synk"], ["trainer_mode=holdfast_synk: nothing of this name is registered"]),
        (
            [f"{ACTOR}.use_kl_loss=true", f"{ACTOR}.kl_loss_type=k4"],
            ["actor.kl_loss_type=k4: no such penalty; verl refuses it only after the first rollout"],
        ),
        (
            [f"{POLICY_LOSS}.loss_mode=holdfast_dr_grpo", "algorithm.norm_adv_by_std_in_grpo=false",
             "data.max_response_length=8192"],
            [f"divides each sequence by 1024 tokens, whatever the longest response is. Set +{POLICY_LOSS}.settings."
             "length=8192"],
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


@pytest.mark.parametrize(
    "overrides",
    [
        [f"{ACTOR}.clip_ratio_low=0.2", f"{ACTOR}.clip_ratio_high=0.28"],  # clip_ratio is at its default
        [f"{POLICY_LOSS}.loss_mode=holdfast_dapo", f"{ACTOR}.clip_ratio_high=0.28"],  # as DAPO has it
        [f"{POLICY_LOSS}.loss_mode=holdfast_ppo", f"{ACTOR}.clip_ratio_c=3.0", f"{ACTOR}.clip_ratio=0.2"],
        [f"{POLICY_LOSS}.loss_mode=holdfast_gspo", f"{ACTOR}.loss_agg_mode=seq-mean-token-mean"],
        [f"{RS}=token_k2", f"{THRESHOLD}=0.05"],  # grpo sums the reward up before the mask, and no response is rejected
        [f"{RS}=token_k2", f"{THRESHOLD}=0.05", "algorithm.adv_estimator=rloo"],
        [f"{RS}=token_k1", f"{THRESHOLD}=0.5_2.0"],
        [f"{POLICY_LOSS}.loss_mode=gspo", f"{ACTOR}.loss_agg_mode=seq-mean-token-mean"],
        [f"{ACTOR}.loss_agg_mode=seq-mean-token-sum-norm", f"{ACTOR}.loss_scale_factor=1024"],
        [f"{POLICY_LOSS}.loss_mode=sapo", f"{ACTOR}.loss_agg_mode=seq-mean-token-sum-norm"],  # it does not read it
        [f"{CORRECTION}.rollout_is=sequence", f"{CORRECTION}.rollout_is_threshold=0.5_2.0"],
        [f"{ACTOR}.use_kl_loss=true", f"{ACTOR}.kl_loss_type=k3+"],
        [f"{POLICY_LOSS}.loss_mode=holdfast_dr_grpo", "algorithm.norm_adv_by_std_in_grpo=false",
         "data.max_response_length=1024"],
    ],
)  # fmt: skip
def test_what_does_as_it_says_is_no_trap(overrides):
    assert found(*overrides) == []


TRIALS = [
    ("token_k9", "0.1"), ("seq_max_k1", "0.5_2.0"), ("token_k2", None), ("token_k2", "abc"), ("token_k2", "0.1_0.2"),
    ("token_k2", "-0.1"), ("token_k2", "0.1,0.2"), ("token_k2,seq_mean_k3", "0.1,0.2,0.3"), ("token_k1", "1.2_0.8"),
    ("token_k1", "0.5"), ("token_k1", "0"), ("seq_mean_k1", "x_2"), ("token_k2,token_k2", "0.1,0.1"),
    ("token_k2", "0.1"), ("token_k1", "2"), ("seq_mean_k1", "0.8_1.25"), ("token_k2,seq_mean_k3", "0.1,0.01"),
    ("token_k2 , seq_mean_k3", "0.01"),
]  # fmt: skip


@pytest.mark.parametrize(("modes", "threshold"), TRIALS)
def test_what_verl_refuses_after_the_first_rollout_is_found_before(modes, threshold):
    """verl's own parser is the judge."""
    ratio = torch.zeros(1, 2)
    try:
        compute_rollout_rejection_mask(ratio, torch.ones(1, 2), modes, threshold)
        refused = False
    except (ValueError, ZeroDivisionError):
        refused = True
    value = "null" if threshold is None else f"'{threshold}'"
    lines = found(f"{RS}='{modes}'", f"{THRESHOLD}={value}", "algorithm.adv_estimator=rloo")
    assert any("verl refuses it only after the first rollout" in line for line in lines) == refused, lines


@pytest.mark.parametrize("threshold", ["abc", "0", "-1", "2_0.5", "0.5_x", "0.5_2", "2", "2.0"])
def test_a_weight_threshold_is_refused_as_verl_does(threshold):
    try:
        _parse_rollout_is_threshold(threshold)
        refused = False
    except ValueError:
        refused = True
    lines = found(f"{CORRECTION}.rollout_is=token", f"{CORRECTION}.rollout_is_threshold='{threshold}'")
    assert bool(lines) == refused, lines
    assert found(f"{CORRECTION}.rollout_is=tokens")[0].startswith("rollout_is=tokens: allowed: token, sequence")


def test_the_modes_are_verls():
    assert set(correction.REJECTION_MODES) == SUPPORTED_ROLLOUT_RS_OPTIONS


@pytest.mark.parametrize(
    "name", ["gae", "grpo", "rloo", "opo", "gpg", "reinforce_plus_plus", "remax", "reinforce_plus_plus_baseline",
             "grpo_vectorized", "rloo_vectorized", "grpo_passk", "optimal_token_baseline"]
)  # fmt: skip
def test_which_estimators_lose_the_reward_of_a_masked_last_token(name):
    """verl's own estimators are the judge: two responses to one prompt, the better one with its last token masked."""
    rewards = torch.zeros(2, 3)
    rewards[0, 2] = 1.0
    given = {
        "token_level_rewards": rewards, "index": np.array(["a", "a"], dtype=object), "gamma": 1.0, "lam": 1.0,
        "values": torch.zeros(2, 3), "reward_baselines": torch.zeros(2), "old_log_probs": torch.full((2, 3), -1.0),
        "sum_pi_squared": torch.full((2, 3), 0.3), "config": AlgoConfig(adv_estimator=name, gamma=1.0),
    }  # fmt: skip
    estimate = get_adv_estimator_fn(name)
    names = inspect.signature(estimate).parameters

    def gain(mask):
        advantages = estimate(response_mask=mask, **{key: value for key, value in given.items() if key in names})[0]
        return float((advantages[0] - advantages[1])[:2].sum())

    whole, cut = torch.ones(2, 3), torch.ones(2, 3)
    cut[0, 2] = 0
    assert gain(whole) > 0.1
    assert (abs(gain(cut)) < 1e-6) == (name in correction.LAST_TOKEN_REWARDS)
    lines = found(f"{RS}=token_k2", f"{THRESHOLD}=0.05", f"algorithm.adv_estimator={name}")
    assert any("the reward on it is masked too" in line for line in lines) == (name in correction.LAST_TOKEN_REWARDS)


def test_the_sum_norm_follows_the_split_and_a_factor_does_not():
    """agg_loss of verl: two sequences of 2 and 6 tokens, loss 1 each, in one micro-batch or in two."""
    loss = torch.ones(2, 6)
    mask = torch.tensor([[1, 1, 0, 0, 0, 0], [1] * 6])

    def total(parts, **options):
        return sum(
            float(agg_loss(loss[p][:, :width], mask[p][:, :width], "seq-mean-token-sum-norm", global_batch_size=2,
                           batch_num_tokens=8, **options))
            for p, width in parts
        )  # fmt: skip

    one, two = [([0, 1], 6)], [([0], 2), ([1], 6)]
    assert total(one) == pytest.approx((2 + 6) / 2 / 6)  # .667 with both over 6
    assert total(two) == pytest.approx(2 / 2 / 2 + 6 / 2 / 6)  # 1.0: the short one over its own 2
    assert total(one, loss_scale_factor=6) == pytest.approx(total(two, loss_scale_factor=6))


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
            [*loss_overrides("trm", baseline="accepted"), "algorithm.adv_estimator=reinforce_plus_plus"],
            "baseline=accepted with algorithm.adv_estimator=reinforce_plus_plus: known for grpo, rloo, opo",
        ),
        ([*loss_overrides("trm", baseline="accepted"), GAE], "adv_estimator=gae: known for grpo, rloo, opo"),
        (
            [*loss_overrides("trm", baseline="accepted"), "actor_rollout_ref.rollout.n=1"],
            "baseline=accepted with rollout.n=1: a group of one has no baseline",
        ),
        (
            [*loss_overrides("ppo", baseline="accepted"), "actor_rollout_ref.rollout.n=4"],
            "baseline=accepted with ppo: it has no mask, so nothing is ever rejected",
        ),
        (
            [f"{POLICY_LOSS}.loss_mode=holdfast_trm", "distillation.enabled=true"],
            "distillation.enabled=true: the objective takes the place of verl's distillation loss",
        ),
        (
            [f"{POLICY_LOSS}.loss_mode=holdfast_trm", "trainer.use_v1=false"],
            "trainer_mode=holdfast_sync with trainer.use_v1=false: the old trainer does not read the mode",
        ),
        (
            [f"{POLICY_LOSS}.loss_mode=holdfast_trm", "+async_training.require_batches=1"],
            "in a fully asynchronous or one-step-off run: their entry points do not read the mode",
        ),
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


def test_a_command_line_is_read_as_hydra_reads_it(tmp_path):
    from holdfast.integrations.verl.check.composed import command_line

    line = command_line(["python3", "-m", "verl.trainer.main_ppo", "--config-name=ppo_megatron_trainer.yaml", "a=1"])
    assert (line.entry, line.config_name, line.overrides) == ("verl.trainer.main_ppo", "ppo_megatron_trainer", ("a=1",))
    assert composed(["--config-path=config", "--config-name", "ppo_megatron_trainer.yaml"]).trainer.nnodes == 1
    assert composed(["--config-path", "./config", "trainer.nnodes=3"]).trainer.nnodes == 3
    entry = ["-m", "verl.experimental.fully_async_policy.fully_async_main", "async_training.require_batches=7"]
    assert composed(entry).async_training.require_batches == 7
    named = ["--config-path=config", "--config-name=fully_async_ppo_trainer.yaml"]
    assert composed(named).async_training.staleness_threshold == 0.1
    assert composed(["-cn", "one_step_off_ppo_trainer"]).rollout.nnodes == 1
    own = "hydra:\n  searchpath: [pkg://verl.trainer.config]\ndefaults: [ppo_trainer, _self_]\ntrainer:\n  nnodes: 5\n"
    (tmp_path / "mine.yaml").write_text(own)
    assert composed([f"--config-path={tmp_path}", "--config-name=mine"]).trainer.nnodes == 5
    assert composed([f"--config-dir={tmp_path}", "-cn", "mine"]).trainer.nnodes == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config-name=nothing"], "--config-name nothing: no such config in"),
        (["--confg-name=x"], "--confg-name=x: not an option of verl's entry points"),
        ([*OURS, "trainer.nnnodes=2"], "nnnodes"),
        ([*OURS, f"{POLICY_LOSS}._target_=nowhere.Loss"], "nowhere"),
    ],
)
def test_what_cannot_be_composed_is_a_sentence(arguments, words, capsys):
    assert command.main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said


def test_without_verl_the_command_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert command.main([]) == 2
    assert "verl is not installed here: pip install 'holdfast-rl[verl]'" in capsys.readouterr().err


def test_a_threshold_that_is_no_number_is_no_traceback(capsys):
    assert command.main([*BASE, f"{RS}=token_k2", f"{THRESHOLD}=abc"]) == 1
    assert "abc is not a number; verl refuses it only after the first rollout" in capsys.readouterr().out


def test_the_command_checks_a_command_line(capsys):
    assert command.main(OURS) == 0
    assert "min(r, 1.2)" in capsys.readouterr().out
    assert command.main([*OURS, f"{ACTOR}.clip_ratio_low=0.1"]) == 1
    assert "does not read these" in capsys.readouterr().out
    assert command.main([*BASE, f"{POLICY_LOSS}.loss_mode=holdfast_trm"]) == 2
    assert "level 1: 'trm' needs rollout_logprobs" in capsys.readouterr().err

"""What the plug-in relies on inside verl: a release that changes any of it fails here by name."""

import inspect
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points, version

import pytest
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, get_trainer_cls
from verl.utils.config import validate_config
from verl.utils.metric import AggregationType, Metric
from verl.workers.config import ActorConfig, PolicyLossConfig
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from holdfast import ConfigError
from holdfast.integrations.verl.check.composed import composed
from holdfast.integrations.verl.contract import LEVEL_1, LEVEL_2, differences
from holdfast.integrations.verl.names import CONFIG_CLASS, TESTED, TRAINER_MODE
from holdfast.integrations.verl.trainer import HoldfastTrainerSync

# Hydra 1.3 calls what OmegaConf 2.4 deprecates.
pytestmark = [pytest.mark.filterwarnings(f"ignore:{old}") for old in ("register_new_resolver", "Implicit conversion")]


def test_the_version_is_a_tested_one():
    assert version("verl") in TESTED


def test_nothing_that_the_plugin_relies_on_differs():
    assert list(differences(LEVEL_1 + LEVEL_2)) == []


def test_a_difference_is_named(monkeypatch):
    monkeypatch.setattr(core_algos, "register_policy_loss", lambda name, kind: None)
    monkeypatch.delattr(PPOTrainer, "_update_actor")
    first, second = differences(LEVEL_1 + LEVEL_2)
    assert first == "verl.trainer.ppo.core_algos.register_policy_loss(name) takes (name, kind)"
    assert second.startswith("verl.trainer.ppo.v1.trainer_base.PPOTrainer._update_actor is missing")


def test_fields_and_values_that_are_read():
    actor = {
        "entropy_coeff",
        "use_kl_loss",
        "kl_loss_coef",
        "kl_loss_type",
        "policy_loss",
        "strategy",
        "global_batch_info",
    }
    assert actor <= set(ActorConfig.__dataclass_fields__)
    assert "loss_mode" in PolicyLossConfig.__dataclass_fields__
    assert (AggregationType.SUM.value, AggregationType.MAX.value) == ("sum", "max")
    assert ActorRolloutRefWorker.actor_worker_cls is TrainingWorker


def test_verl_calls_a_policy_loss_with_the_names_that_ours_takes():
    from holdfast.integrations.verl.loss import policy_loss

    ours = list(inspect.signature(policy_loss).parameters)
    assert ours == list(inspect.signature(core_algos.compute_policy_loss_vanilla).parameters)


def test_the_entry_point_registers_losses_and_trainer():
    (plugin,) = [entry for entry in entry_points(group="verl.plugins") if entry.name == "holdfast"]
    assert plugin.value == "holdfast.integrations.verl.plugin"
    assert get_trainer_cls(TRAINER_MODE) is HoldfastTrainerSync


@pytest.mark.parametrize("first", ["verl", "holdfast.integrations.verl.step", CONFIG_CLASS.rpartition(".")[0]])
def test_it_registers_whatever_is_imported_first(first):
    code = (
        f"import {first}, verl; from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY as losses; "
        "from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY as trainers; "
        "print('holdfast_grpo' in losses, 'holdfast_sync' in trainers)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["True", "True"]


@pytest.fixture
def plugin(monkeypatch):
    from holdfast.integrations.verl import plugin

    monkeypatch.setattr(plugin, "version", lambda name: "0.10.0")
    return plugin


def test_a_version_is_judged_by_what_differs_not_by_its_number(plugin, monkeypatch, recwarn):
    plugin.register()
    assert not recwarn
    monkeypatch.delattr(Metric, "from_dict")
    with pytest.warns(
        UserWarning, match=r"verl 0\.10\.0 differs: verl\.utils\.metric\.Metric\.from_dict is missing.*0\.9\.1"
    ):
        plugin.register()


def test_a_plugin_that_cannot_register_says_so(plugin, monkeypatch):
    monkeypatch.delattr(core_algos, "register_policy_loss")
    with pytest.warns(UserWarning, match=r"holdfast is not registered with verl 0\.10\.0: ImportError"):
        plugin.register()


@pytest.mark.parametrize(
    ("absent", "words"),
    [
        ("transfer_queue", "TransferQueue is not installed: pip install TransferQueue"),
        ("verl.trainer.ppo.v1", "this verl has no v1 trainer: install verl 0.9.0 or newer"),
    ],
)
def test_level_1_survives_without_the_trainer_mode(absent, words):
    code = (
        f"import sys, warnings; sys.modules[{absent!r}] = None; warnings.simplefilter('always')\n"
        "import verl; from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY as losses; "
        "print('holdfast_grpo' in losses)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "True"
    assert "trainer_mode=holdfast_sync is not registered" in done.stderr and words in done.stderr


@pytest.mark.filterwarnings("ignore:Disabled critic")
def test_verl_takes_our_trainer_for_a_synchronous_one(monkeypatch):
    """Before the replay buffer is built, which a mode by another name would make an asynchronous one."""
    config = composed(
        [
            *("trainer.v1.trainer_mode=holdfast_sync", "actor_rollout_ref.actor.policy_loss.loss_mode=holdfast_trm"),
            *("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1", "actor_rollout_ref.model.path=model"),
            *("actor_rollout_ref.rollout.calculate_log_probs=true", "algorithm.adv_estimator=grpo"),
        ]
    )
    monkeypatch.setattr(PPOTrainer, "__abstractmethods__", frozenset())
    trainer = HoldfastTrainerSync(config)
    assert trainer.trainer_mode == "sync" and trainer.parameter_sync_step == 1
    assert type(trainer.replay_buffer) is ReplayBuffer
    assert trainer.replay_buffer.trainer_mode == "sync"
    assert trainer.replay_buffer.gen_batch_size == config.data.train_batch_size


RUN = [
    *("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1", "actor_rollout_ref.model.path=model"),
    *("actor_rollout_ref.rollout.calculate_log_probs=true", "algorithm.adv_estimator=grpo", "data.train_batch_size=8"),
    *("actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1", "actor_rollout_ref.actor.ppo_mini_batch_size=4"),
]
LOSS = "actor_rollout_ref.actor.policy_loss.loss_mode"


@pytest.mark.parametrize("use_v1", ["true", "false"])
def test_what_a_level_cannot_do_is_refused_before_ray_starts(use_v1):
    """verl's own check of its config, as main_ppo calls it for either trainer."""
    main = import_module("verl.trainer.main_ppo" if use_v1 == "true" else "verl.trainer.main_ppo_v0")
    config = composed([*RUN, f"{LOSS}=holdfast_trm", f"trainer.use_v1={use_v1}"])
    with pytest.raises(ConfigError, match="level 1: 'trm' needs rollout_logprobs"):
        main.validate_config(config, use_reference_policy=False, use_critic=False)


def test_our_mode_with_the_old_trainer_is_refused_at_the_start():
    mode = "trainer.v1.trainer_mode=holdfast_sync"
    config = composed([*RUN, f"{LOSS}=holdfast_ppo", mode, "trainer.use_v1=false"])
    with pytest.raises(ConfigError, match="the old trainer does not read the mode"):
        import_module("verl.trainer.main_ppo").validate_config(config, use_reference_policy=False, use_critic=False)


def test_a_start_prints_the_objective_and_every_trap(capsys, caplog):
    mode = "trainer.v1.trainer_mode=holdfast_sync"
    config = composed([*RUN, f"{LOSS}=holdfast_kl_cov", mode, "actor_rollout_ref.actor.clip_ratio_low=0.1"])
    validate_config(config, use_reference_policy=False, use_critic=False)
    said = capsys.readouterr().out
    # 4 prompts of 1 response of at most 512 tokens, 13 + 52 bytes each: .127 MiB
    assert (
        "[holdfast] kl_cov:  L = −Σ_it" in said and "kl_cov looks at the whole optimiser step: up to 0.13 MiB" in said
    )
    assert "actor.clip_ratio_low=0.1 with loss_mode=holdfast_kl_cov" in caplog.text


def test_a_run_without_us_is_left_alone(capsys, caplog):
    config = composed([*RUN, "actor_rollout_ref.actor.clip_ratio=0.3"])
    validate_config(config, use_reference_policy=False, use_critic=False)
    assert "holdfast" not in capsys.readouterr().out + caplog.text

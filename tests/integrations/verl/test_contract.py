"""What the plug-in relies on inside verl: a release that changes any of it fails here by name."""

import inspect
import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, get_trainer_cls
from verl.utils import tensordict_utils
from verl.utils.metric import AggregationType, Metric
from verl.workers.config import ActorConfig, PolicyLossConfig
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

from holdfast.integrations.verl.names import CONFIG_CLASS, SUPPORTED, TRAINER_MODE
from holdfast.integrations.verl.trainer import HoldfastTrainerSync

SIGNATURES = [
    (core_algos.register_policy_loss, "name"),
    (ppo_loss, "config model_output data dp_group"),
    (no_padding_2_padding, "tensor data"),
    (tensordict_utils.assign_non_tensor, "tensor_dict kwargs"),
    (tensordict_utils.get, "tensordict key default"),
    (tensordict_utils.pop, "tensordict key default"),
    (tensordict_utils.get_tensordict, "tensor_dict non_tensor_dict"),
    (TrainingWorker.train_mini_batch, "self data"),
    (TrainingWorker.train_batch, "self data"),
    (TrainingWorker.set_loss_fn, "self loss_fn"),
    (ActorRolloutRefWorker.init_model, "self"),
    (FSDPEngine.infer_batch, "self data loss_function"),
    (FSDPEngine.get_data_parallel_group, "self"),
    (FSDPEngine.get_data_parallel_rank, "self"),
    (FSDPEngine.get_data_parallel_size, "self"),
    (FSDPEngine.is_mp_src_rank_with_outputs, "self"),
    (FSDPEngine.eval_mode, "self kwargs"),
    (PPOTrainer._init_resource_pool_mgr, "self"),
    (PPOTrainer._compute_advantage, "self batch metrics"),
    (PPOTrainer._update_actor, "self batch metrics"),
    (Metric.from_dict, "data aggregation"),
]


def test_the_version_is_the_supported_one():
    assert version("verl") == SUPPORTED


@pytest.mark.parametrize(("function", "expected"), SIGNATURES, ids=lambda value: getattr(value, "__qualname__", ""))
def test_signature(function, expected):
    assert " ".join(inspect.signature(function).parameters) == expected


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


def test_another_version_is_warned_of(monkeypatch):
    from holdfast.integrations.verl import plugin

    monkeypatch.setattr(plugin, "version", lambda name: "0.10.0")
    with pytest.warns(UserWarning, match=r"written for verl 0\.9\.1, found 0\.10\.0: install verl==0\.9\.1"):
        plugin.register()


def test_a_plugin_that_cannot_register_says_so(monkeypatch):
    from holdfast.integrations.verl import plugin

    monkeypatch.delattr(core_algos, "register_policy_loss")
    with pytest.warns(UserWarning, match=r"holdfast is not registered with verl 0\.9\.1: ImportError"):
        plugin.register()

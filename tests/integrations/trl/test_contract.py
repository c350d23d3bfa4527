"""The plug-in says which TRL broke what, before a run starts."""

import importlib.metadata
import inspect

import pytest
from trl import GRPOTrainer

from holdfast import ConfigError
from holdfast.integrations.trl import contract
from holdfast.integrations.trl.trainer import HoldfastGRPOTrainer
from integrations.trl import runs

pytestmark = pytest.mark.filterwarnings("ignore")


def test_installed_trl_has_everything_relied_on(tmp_path):
    trainer = HoldfastGRPOTrainer(
        runs.model(),
        runs.small_digits,
        runs.config(tmp_path),
        runs.PROMPTS,
        objective="grpo",
        processing_class=runs.TOKENIZER,
    )
    assert contract.differences(trainer) == []
    assert trainer.loss_is_scaled_for_ga is True


def test_overrides_have_the_signatures_that_trl_calls():
    for name in ("_compute_loss", "_generate_and_score_completions", "_calculate_rewards"):
        assert name in vars(HoldfastGRPOTrainer), name
        assert tuple(inspect.signature(vars(HoldfastGRPOTrainer)[name]).parameters) == contract.SIGNATURES[name]


def test_no_name_of_ours_is_one_of_trls(tmp_path):
    own = {name for name in vars(HoldfastGRPOTrainer) if not name.startswith("__")} - contract.SIGNATURES.keys()
    stock = GRPOTrainer(
        runs.model(), runs.small_digits, runs.config(tmp_path), runs.PROMPTS, processing_class=runs.TOKENIZER
    )
    own |= {"objective", "rollouts_every", "_step_in_progress", "_rewards"}
    assert {name for name in own if hasattr(stock, name)} <= {"_tag_names", "_name", "_paper"}


def test_changed_upstream_method_is_named(monkeypatch):
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", lambda self, model, inputs, items: None)
    monkeypatch.delattr(GRPOTrainer, "_calculate_rewards")
    monkeypatch.setattr(contract, "version", lambda name: "1.17.0")
    with pytest.raises(ConfigError) as error:
        contract.require_supported()
    message = str(error.value)
    assert "trl 1.17.0 is installed" in message
    assert "trl~=1.16.0" in message
    assert "GRPOTrainer._compute_loss takes (self, model, inputs, items), expected (self, model, inputs)" in message
    assert "GRPOTrainer._calculate_rewards is gone" in message


def test_missing_trl_is_said(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(contract, "version", absent)
    with pytest.raises(ConfigError, match="pip install 'holdfast\\[trl\\]'"):
        contract.require_supported()

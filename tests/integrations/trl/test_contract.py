"""The plug-in says which TRL broke what, before a run starts."""

import importlib.metadata
import inspect
import warnings

import pytest
import torch
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


def test_overrides_begin_as_trl_calls_them():
    for name in ("_compute_loss", "_generate", "_generate_and_score_completions", "_calculate_rewards",
                 "create_model_card"):  # fmt: skip
        assert name in vars(HoldfastGRPOTrainer), name
        own = tuple(inspect.signature(vars(HoldfastGRPOTrainer)[name]).parameters)
        assert own in contract.SIGNATURES[name]


def test_no_name_of_ours_is_one_of_trls(tmp_path):
    own = {name for name in vars(HoldfastGRPOTrainer) if not name.startswith("__")} - contract.SIGNATURES.keys()
    stock = GRPOTrainer(
        runs.model(), runs.small_digits, runs.config(tmp_path), runs.PROMPTS, processing_class=runs.TOKENIZER
    )
    own |= {"objective", "rollouts_every", "top_logprobs", "run", "_step_in_progress", "_rewards", "_reported"}
    assert {name for name in own if hasattr(stock, name)} <= {"_tag_names", "_name", "_paper"}


def test_what_changed_upstream_decides_and_not_the_number(monkeypatch):
    for number in ("1.16.3", contract.TESTED[0] + ".0"):
        monkeypatch.setattr(contract, "version", lambda name, number=number: number)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            contract.require_supported()
    monkeypatch.setattr(contract, "version", lambda name: "1.99.0")
    with pytest.warns(UserWarning, match=r"trl 1.99.0 was never tried .* everything that it relies on is there"):
        contract.require_supported()
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", lambda self, model, inputs: None)
    with pytest.warns(UserWarning, match="1.99.0"):
        contract.require_supported()
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", lambda self, model, items: None)
    monkeypatch.delattr(GRPOTrainer, "_calculate_rewards")
    with pytest.raises(ConfigError) as error:
        contract.require_supported()
    message = str(error.value)
    assert "trl 1.99.0 is installed" in message
    assert f"trl~={contract.TESTED[-1]}.0" in message
    assert "GRPOTrainer._compute_loss takes (self, model, items), expected (self, model, inputs, ...)" in message
    assert "GRPOTrainer._calculate_rewards is gone" in message


def test_what_a_trainer_lacks_is_named(tmp_path, monkeypatch):
    made = HoldfastGRPOTrainer(
        runs.model(), runs.small_digits, runs.config(tmp_path), runs.PROMPTS, None, runs.TOKENIZER, objective="grpo"
    )
    del made._buffered_inputs
    monkeypatch.setattr(type(made), "loss_is_scaled_for_ga", None)
    made.compute_loss_func = None
    with pytest.raises(ConfigError, match=r"no attribute _buffered_inputs; .* scaling for gradient accumulation"):
        contract.require_trainer(made)
    with pytest.raises(ConfigError, match="a generation has no completion_mask"):
        contract.require_inputs({"prompt_ids": 1, "prompt_mask": 1, "completion_ids": 1, "advantages": 1})


def test_missing_trl_is_said(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(contract, "version", absent)
    with pytest.raises(ConfigError, match="pip install 'holdfast-rl\\[trl\\]'"):
        contract.require_supported()


def test_an_entropy_without_a_gradient_is_no_bonus():
    scored = {"logprobs": torch.ones(2, requires_grad=True), "entropy": torch.ones(2)}
    contract.require_gradient({"logprobs"}, **scored)
    contract.require_gradient({"entropy"}, **{name: value.detach() for name, value in scored.items()})
    with pytest.raises(ConfigError, match="entropy comes without a gradient"):
        contract.require_gradient({"entropy"}, **scored)

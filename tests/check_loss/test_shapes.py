"""Each framework's contract, with a loss written for it, and what is said of one that does not fit."""

import json
from dataclasses import dataclass

import pytest
import torch

from holdfast import DataError
from holdfast.check_loss.laws import on_policy_law
from holdfast.check_loss.report import check_loss
from holdfast.check_loss.shapes import SHAPES, build, load
from holdfast.cli import dispatch

FILE = """
import torch

def loss(logprobs, old_logprobs, advantages, mask, num_items_in_batch, high=0.2):
    ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()
    losses = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1 + high) * advantages)
    return torch.where(mask > 0, losses, 0).sum() / num_items_in_batch

def broken(logprobs, advantages, mask):
    return (logprobs * advantages * mask).sum() / mask.sum()

def needs_more(logprobs, advantages, mask, magic):
    return logprobs.sum()

class Loss(torch.nn.Module):
    def __init__(self, high=0.2):
        super().__init__()
        self.high = high

    def forward(self, log_probs, old_log_probs, advantages, action_mask):
        return loss(log_probs, old_log_probs, advantages, action_mask, action_mask.sum(), self.high), {}

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_exit_codes_text_and_json(folder, capsys):
    assert dispatch(["check-loss", "mine.py:loss", "--set", "high=0.28"]) == 0
    text = capsys.readouterr().out
    assert "no law is broken" in text and "this is `dapo`, divided by the step's tokens" in text
    assert dispatch(["check-loss", "mine.py:broken", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["broken"] == ["on_policy", "split"]
    assert found["ratio_below"] == "none" and found["findings"][0]["status"] == "broken"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere_at_all:f"], "cannot import 'nowhere_at_all': ModuleNotFoundError"),
        (["missing.py:f"], "cannot import 'missing.py': FileNotFoundError"),
        (["mine.py:other"], "'mine.py' has no 'other'"),
        (["mine.py"], "names no loss: write module:function"),
        (["mine.py:number"], "is a int, which cannot be called"),
        (["mine.py:needs_more"], "needs magic, which --shape plain does not know; known are logprobs: "),
        (["mine.py:loss", "--set", "low=1"], "loss takes no low; it takes logprobs"),
        (["mine.py:loss", "--set", "low"], "write KEY=VALUE"),
        (["mine.py:loss", "--shape", "verl"], r"does not have the signature of --shape verl"),
        (["mine.py:loss", "--shape", "prime-rl"], r"does not have the signature of --shape prime-rl"),
        (["mine.py:broken", "--shape", "tinker"], r"does not have the signature of --shape tinker"),
        (["mine.py:loss", "--shape", "slime"], r"does not have the signature of --shape slime"),
        (["mine.py:loss", "--shape", "trl"], r"does not have the signature of --shape trl"),
        (["mine.py:Loss", "--shape", "trl"], "Loss has no _compute_loss"),
    ],
)
def test_unusable_losses_are_one_sentence(arguments, words, folder, capsys):
    assert dispatch(["check-loss", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_class_is_built_with_the_settings(folder):
    report = check_loss(build("mine.py:Loss", "plain", {"high": 0.28}))
    assert report.rows[0].row == "dapo" and [f.law for f in report.broken] == ["split"]
    with pytest.raises(DataError, match=r"Loss\(\{'hihg': 1\}\) raised TypeError"):
        build("mine.py:Loss", "plain", {"hihg": 1})


def test_a_module_beside_the_command_is_found(folder):
    (folder / "own_losses_of_test.py").write_text(FILE)
    assert load("own_losses_of_test:loss").__name__ == "loss"


@dataclass
class Outputs:
    loss: torch.Tensor
    metrics: dict


def of_prime_rl(inputs, threshold=0.1):
    ratio = (inputs.trainer_logprobs - inputs.inference_logprobs).exp()
    gap = inputs.trainer_logprobs.exp() - inputs.inference_logprobs.exp()
    kept = inputs.loss_mask & (gap.abs() <= threshold)
    return Outputs(-(ratio * inputs.advantages)[kept].sum(), {})


@pytest.mark.slow
def test_prime_rl():
    report = check_loss(SHAPES["prime-rl"]("of_prime_rl", of_prime_rl, {}))
    assert not report.broken and report.below == "rollout"
    assert "ipo" in [row.row for row in report.rows] and report.rows[0].same
    changed = check_loss(SHAPES["prime-rl"]("of_prime_rl", of_prime_rl, {"threshold": 0.02}))
    assert not changed.rows[0].same


def of_prime_rl_averaged(inputs):
    ratio = (inputs.trainer_logprobs - inputs.inference_logprobs).exp()
    return Outputs(-(ratio * inputs.advantages * inputs.loss_mask).sum() / inputs.loss_mask.sum(), {})


def test_prime_rl_with_a_mean_has_another_divisor_and_nan_for_an_empty_row():
    report = check_loss(SHAPES["prime-rl"]("f", of_prime_rl_averaged, {}))
    assert [finding.law for finding in report.broken] == ["on_policy", "padding"]


def of_tinker(data, logprobs):
    total = 0
    for datum, current in zip(data, logprobs, strict=True):
        inputs = {key: value.to_torch() for key, value in datum.loss_fn_inputs.items()}
        assert inputs["advantages"].tolist() == datum.loss_fn_inputs["advantages"].tolist()
        total = total - ((current - inputs["logprobs"]).exp() * inputs["advantages"] * inputs["mask"]).sum()
    return total, {}


def test_tinker():
    report = check_loss(SHAPES["tinker"]("of_tinker", of_tinker, {}))
    assert not report.broken and report.below == "rollout" and str(report.divisor) == "nothing"
    assert {finding.law: finding.status for finding in report.findings}["split"] == "not judged"


def of_slime(args, *, pg_loss, train_log_probs, rollout_log_probs, loss_masks, **more):
    weight = (torch.cat(train_log_probs) - torch.cat(rollout_log_probs)).exp().clamp(max=args.tis_clip)
    return pg_loss * weight, loss_masks, {}


def test_slime():
    report = check_loss(SHAPES["slime"]("of_slime", of_slime, {}))
    assert not report.broken and report.below == "both"
    assert report.rows[0].same and report.rows[0].row == "tis"
    assert str(report.divisor) == "each response's tokens, then the sequences"


def of_verl(old_log_prob, log_prob, advantages, response_mask, loss_agg_mode="token-mean", config=None, **more):
    ratio = (log_prob - old_log_prob).clamp(-20, 20).exp()
    clipped = ratio.clamp(1 - config.clip_ratio_low, 1 + config.clip_ratio_high)
    losses = -torch.minimum(ratio * advantages, clipped * advantages)
    return (losses * response_mask).sum() / config.global_batch_info["batch_num_tokens"], {}


def of_verl_alone(old_log_prob, log_prob, advantages, response_mask, loss_agg_mode="token-mean", config=None, **more):
    return -((log_prob - old_log_prob).exp() * advantages * response_mask).sum() / response_mask.sum(), {}


@pytest.mark.slow
def test_verl():
    report = check_loss(SHAPES["verl"]("of_verl", of_verl, {"clip_ratio_high": 0.28}))
    assert not report.broken and report.rows[0].row == "dapo"
    (split,) = check_loss(SHAPES["verl"]("of_verl_alone", of_verl_alone, {})).broken
    assert "where the step's is needed; pass **config.global_batch_info to agg_loss" in split.says


class OwnTrainer:
    def _compute_loss(self, model, inputs):
        logps, _, _ = self._get_per_token_logps_and_entropies(model)
        mask = inputs["completion_mask"] * inputs["tool_mask"]
        ratio = (logps - inputs["old_per_token_logps"]).clamp(-20, 20).exp()
        advantages = inputs["advantages"][:, None]
        clipped = ratio.clamp(1 - self.epsilon_low, 1 + self.epsilon_high)
        losses = -torch.minimum(ratio * advantages, clipped * advantages)
        self._metrics["train"]["ratio"].append(ratio.mean().item())
        divisor = inputs["num_items_in_batch"] if self.loss_type == "dapo" else mask.sum()
        return (losses * mask).sum() / divisor


@pytest.mark.slow
def test_trl():
    settings = {"loss_type": "dapo", "epsilon_high": 0.28}
    report = check_loss(SHAPES["trl"]("OwnTrainer", OwnTrainer, settings))
    assert not report.broken and report.rows[0].row == "dapo"
    (split,) = check_loss(SHAPES["trl"]("OwnTrainer", OwnTrainer, {})).broken
    assert split.law == "split" and "micro-batch's own tokens" in split.says
    with pytest.raises(DataError, match=r"a trainer has no epsilon_hihg; it has .*epsilon_high"):
        SHAPES["trl"]("OwnTrainer", OwnTrainer, {"epsilon_hihg": 1})
    function = check_loss(SHAPES["trl"]("function", OwnTrainer._compute_loss, settings))
    assert not function.broken


def indexed(logprobs, advantages, mask, num_items_in_batch):
    return -(logprobs * advantages)[mask].sum() / num_items_in_batch


def test_masks_may_be_booleans():
    assert on_policy_law(SHAPES["plain"]("indexed", indexed, {}))[0].status == "holds"

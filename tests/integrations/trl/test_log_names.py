"""TRL's numbers under TRL's names, equal to TRL's own in the same run; constants and empty quarters are left out."""

import pytest
import torch
from trl import GRPOTrainer

import holdfast
from holdfast.integrations.trl import HoldfastGRPOTrainer
from holdfast.integrations.trl.metrics import log_names
from holdfast.objectives.metrics import LengthQuartiles
from integrations.trl import runs

pytestmark = pytest.mark.filterwarnings("ignore")

WHOLE = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_iterations": 2, "max_steps": 4,
         "learning_rate": 1e-2}  # fmt: skip
CLIPS = [f"clip_ratio/{name}" for name in ("low_mean", "high_mean", "region_mean", "low_min", "high_max")]
CASES = {
    "grpo": (
        {"loss_type": "grpo", "epsilon": 0.05, "beta": 0.1, "entropy_coef": 0.01},
        {"beta": 0.1, "entropy_coef": 0.01},
        holdfast.preset("grpo", low=0.05, high=0.05),
        [*CLIPS, "kl", "entropy", "entropy_coef"],
    ),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 1e-3, "epsilon_high": 1e-3},
        {},
        holdfast.preset("gspo", low=1e-3, high=1e-3),
        CLIPS,
    ),
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.02}, {}, holdfast.preset("cispo", high=1.02), ["cispo_clip_ratio"],
    ),
    "vespo": ({"loss_type": "vespo"}, {}, "vespo", ["vespo/phi_seq_mean"]),
}  # fmt: skip


def train(kind, folder, settings, **options):
    trainer = kind(
        str(folder / "model"), runs.small_digits, runs.config(folder, **(WHOLE | settings)), runs.PROMPTS,
        processing_class=runs.TOKENIZER, **options,
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.parametrize("case", CASES)
def test_equal_to_trls(case, tmp_path):
    theirs_settings, ours_settings, objective, names = CASES[case]
    runs.model(1).save_pretrained(tmp_path / "model")
    theirs = train(GRPOTrainer, tmp_path, theirs_settings)
    ours = train(HoldfastGRPOTrainer, tmp_path, ours_settings, objective=objective)
    for name in names:
        expected = runs.logged(theirs, name)
        assert len(expected) == 4, name
        assert runs.logged(ours, name) == pytest.approx(expected, rel=1e-3, abs=1e-6), name
    moving = [name for name in names if name not in ("entropy_coef", "clip_ratio/low_min")]
    assert all(max(runs.logged(ours, name)) > 1e-6 for name in moving), "the comparison compares something"
    if case == "grpo":
        # TRL's bonus is a mean over tokens, ours has the objective's normaliser; the policy loss is the same.
        assert runs.logged(ours, "policy_loss")[0] == pytest.approx(runs.logged(theirs, "policy_loss")[0], abs=1e-6)
        assert max(abs(value) for value in runs.logged(ours, "policy_loss")) > 1e-4


def test_mixture_of_experts_logs_its_balancing_loss(tmp_path):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 4,
             "num_experts_per_tok": 2, "router_aux_loss_coef": 0.01, "output_router_logits": True}  # fmt: skip
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=len(runs.TOKENIZER), **sizes)).save_pretrained(tmp_path / "model")
    settings = {"max_steps": 2}
    theirs = train(GRPOTrainer, tmp_path, settings | {"loss_type": "grpo"})
    ours = train(HoldfastGRPOTrainer, tmp_path, settings, objective="grpo")
    assert runs.logged(ours, "aux_loss") == pytest.approx(runs.logged(theirs, "aux_loss"), rel=1e-3)
    assert len(runs.logged(ours, "aux_loss")) == 2


def test_constants_are_left_out(tmp_path):
    runs.model(1).save_pretrained(tmp_path / "model")
    run = train(HoldfastGRPOTrainer, tmp_path, {"max_steps": 1, "num_iterations": 1}, objective="reinforce")
    names = {name for record in run.state.log_history for name in record}
    assert not [name for name in names if "rejected" in name or "weight" in name or "clip_" in name]
    assert "holdfast/coefficient_max" in names and "kl" not in names and "policy_loss" not in names


def test_a_quarter_without_a_response_has_no_share():
    objective = holdfast.preset("trm")
    metrics = {f"masked_sequences_q{q}": torch.tensor(0.0) for q in range(1, 5)} | {
        "masked_sequences": torch.tensor(0.5)
    }
    lengths = torch.arange(8)[None] < torch.tensor([3, 3, 3, 8])[:, None]
    quartiles = LengthQuartiles.of(lengths)
    assert quartiles.sizes.tolist() == [3, 0, 0, 1]
    assert set(log_names(metrics, objective, quartiles)) == {
        "trust_region/rejected_sequences",
        "trust_region/rejected_sequences_length_q1",
        "trust_region/rejected_sequences_length_q4",
    }


def test_weights_that_do_not_act_are_not_logged(tmp_path):
    run = runs.mismatched(runs.Mismatched, tmp_path, settings={"max_steps": 1}, objective="grpo")
    run.vllm_importance_sampling_correction = True
    run.train()
    names = {name for record in run.state.log_history for name in record}
    assert not [name for name in names if "importance_sampling_ratio" in name]
    assert "sampling/sampling_logp_difference/mean" in names


def test_table_of_completions_has_the_objectives_advantages(tmp_path):
    objective = holdfast.preset("grpo", **{"advantage.scale": "none"})
    run = runs.mismatched(runs.Mismatched, tmp_path, settings={"max_steps": 1}, objective=objective)
    seen = []
    shown = run._show_advantages
    run._show_advantages = lambda advantages: (seen.extend(advantages.tolist()), shown(advantages))
    run.train()
    assert list(run._logs["advantages"]) == seen and len(seen) == 8
    rewards = torch.tensor(list(run._logs["rewards"]["small_digits"])).view(2, 4)
    torch.testing.assert_close(torch.tensor(seen).view(2, 4), rewards - rewards.mean(dim=1, keepdim=True))

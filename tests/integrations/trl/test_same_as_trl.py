"""The same objective by TRL and by the plug-in: losses, gradients and weights of a real run, step by step.

Off-policy steps included: every run has two optimiser steps or two passes per generation, so ratios move and clip.
"""

import pytest
import torch
from trl import GRPOTrainer

import holdfast
from holdfast.integrations.trl import HoldfastGRPOTrainer
from integrations.trl import runs

pytestmark = pytest.mark.filterwarnings("ignore")

TWO_STEPS = {"steps_per_generation": 4, "num_iterations": 2, "max_steps": 6}
TWO_PASSES = {"steps_per_generation": 2, "num_iterations": 2}

CASES = [
    ("grpo", {"loss_type": "grpo"}, "grpo", TWO_STEPS),
    ("dapo", {"loss_type": "dapo", "epsilon_high": 0.28}, "dapo", TWO_PASSES),
    (
        "dr_grpo",
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
        "dr_grpo",
        TWO_STEPS,
    ),
    (
        "truncated",
        {"loss_type": "grpo"},
        "grpo",
        TWO_STEPS | {"mask_truncated_completions": True, "max_completion_length": 24},
    ),
    (
        "gspo",
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        "gspo",
        TWO_STEPS,
    ),
    ("cispo", {"loss_type": "cispo", "epsilon_high": 5.0}, "cispo", TWO_PASSES),
]


def train(kind, folder, base, settings, **options):
    gradients = runs.Gradients()
    trainer = kind(
        base,
        runs.small_digits,
        runs.config(folder, **settings),
        runs.PROMPTS,
        processing_class=runs.TOKENIZER,
        callbacks=[gradients],
        **options,
    )
    trainer.train()
    return trainer, gradients.steps


def assert_same_run(theirs, ours, tolerance=2e-5):
    (trl, trl_gradients), (holdfast_, own_gradients) = theirs, ours
    assert len(trl_gradients) == len(own_gradients) > 1
    for expected, actual in zip(trl_gradients, own_gradients, strict=True):
        assert expected.norm() > 1e-3
        assert (actual - expected).norm() <= tolerance * expected.norm()
    assert runs.logged(holdfast_, "loss") == pytest.approx(runs.logged(trl, "loss"), rel=tolerance, abs=1e-7)
    # Adam makes a step out of the sign of a vanishing gradient, so weights are compared as one vector.
    expected, actual = (torch.nn.utils.parameters_to_vector(t.model.parameters()) for t in (trl, holdfast_))
    assert (actual - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(("settings", "objective", "shape"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_same_losses_gradients_and_weights(settings, objective, shape, tmp_path):
    theirs = train(GRPOTrainer, tmp_path, runs.model(), shape | settings)
    ours = train(HoldfastGRPOTrainer, tmp_path, runs.model(), shape, objective=objective)
    assert_same_run(theirs, ours)
    assert max(runs.logged(ours[0], "holdfast/old_abs_log_max")) > 0.01, "no step was off policy"


def test_clipping_is_active_in_the_comparison(tmp_path):
    ours, _ = train(HoldfastGRPOTrainer, tmp_path, runs.model(), TWO_STEPS, objective="grpo")
    assert max(runs.logged(ours, "holdfast/clip_share")) > 0.01


def test_reference_kl(tmp_path):
    base = runs.model(1)
    base.save_pretrained(tmp_path / "model")
    path = str(tmp_path / "model")
    settings = TWO_STEPS | {"beta": 0.1}
    theirs = train(GRPOTrainer, tmp_path, path, settings | {"loss_type": "grpo"})
    ours = train(HoldfastGRPOTrainer, tmp_path, path, settings, objective="grpo")
    assert_same_run(theirs, ours)
    assert ours[0].objective.penalties[0].coefficient == 0.1
    without = train(HoldfastGRPOTrainer, tmp_path, path, TWO_STEPS, objective="grpo")
    assert (without[1][-1] - ours[1][-1]).norm() > 1e-3 * ours[1][-1].norm()


def test_objective_brings_its_own_reference_penalty(tmp_path):
    runs.model(1).save_pretrained(tmp_path / "model")
    path = str(tmp_path / "model")
    kl = holdfast.preset("grpo", penalties=({"kind": "kl", "coefficient": 0.1, "ratio_weighted": True},))
    theirs = train(GRPOTrainer, tmp_path, path, TWO_STEPS | {"loss_type": "grpo", "beta": 0.1})
    assert_same_run(theirs, train(HoldfastGRPOTrainer, tmp_path, path, TWO_STEPS, objective=kl))


def test_lora(tmp_path):
    from peft import LoraConfig

    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    settings = TWO_PASSES | {"beta": 0.05}
    torch.manual_seed(0)  # before 1.15 adapters are drawn before TRL sets its seed
    theirs = train(GRPOTrainer, tmp_path, runs.model(), settings | {"loss_type": "grpo"}, peft_config=adapter)
    torch.manual_seed(0)
    ours = train(HoldfastGRPOTrainer, tmp_path, runs.model(), settings, objective="grpo", peft_config=adapter)
    assert_same_run(theirs, ours)


def test_truncated_importance_sampling_of_the_engine_mismatch(tmp_path):
    settings = TWO_PASSES | {"per_device_train_batch_size": 4}
    corrected = {
        "loss_type": "grpo",
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 1.05,
    }
    runs_of_both = []
    for kind, extra, options in (
        (runs.MismatchedTrl, corrected, {}),
        (runs.Mismatched, {}, {"objective": holdfast.preset("grpo+tis", **{"importance_weight.high": 1.05})}),
    ):
        gradients = runs.Gradients()
        trainer = runs.mismatched(kind, tmp_path, settings=settings | extra, callbacks=[gradients], **options)
        trainer.train()
        runs_of_both.append((trainer, gradients.steps))
    assert_same_run(*runs_of_both)
    assert min(runs.logged(runs_of_both[1][0], "holdfast/weight_mean")) < 0.999, "no weight was truncated"

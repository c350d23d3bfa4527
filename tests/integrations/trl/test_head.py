"""Our LM-head kernels inside TRL: the same run as with TRL's head, and refusals where that cannot be promised."""

import pytest
import torch
from transformers import CohereConfig, CohereForCausalLM

import holdfast
from holdfast import ConfigError
from holdfast.integrations.trl import HoldfastGRPOTrainer, head
from integrations.trl import runs

pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE = {"steps_per_generation": 4, "num_iterations": 2, "max_steps": 3, "temperature": 0.8}
OBJECTIVE = holdfast.preset("grpo+kl_cov+entropy_bonus", alpha=0.1, share=0.2)


def train(folder, base, **options):
    seen = runs.Gradients()
    trainer = HoldfastGRPOTrainer(
        base,
        runs.small_digits,
        runs.config(folder, **SHAPE),
        runs.PROMPTS,
        objective=OBJECTIVE,
        processing_class=runs.TOKENIZER,
        callbacks=[seen],
        **options,
    )
    trainer.train()
    return trainer, seen.steps


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_same_run_with_either_head(adapter, tmp_path, monkeypatch):
    calls = []
    kernel = head.lm_head_stats
    monkeypatch.setattr(head, "lm_head_stats", lambda *args, **options: calls.append(1) or kernel(*args, **options))
    options = {}
    if adapter:
        from peft import LoraConfig

        options["peft_config"] = LoraConfig(
            r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
        )
    theirs = train(tmp_path, runs.model(), **options)
    assert not calls
    ours = train(tmp_path, runs.model(), lm_head="holdfast", **options)
    # One comparison; then, for each of three steps, at least a look at two micro-batches and two gradients.
    assert len(calls) >= 1 + 3 * 4
    for expected, actual in zip(theirs[1], ours[1], strict=True):
        assert expected.norm() > 1e-3
        assert (actual - expected).norm() <= 1e-4 * expected.norm()
    assert runs.logged(ours[0], "entropy") == pytest.approx(runs.logged(theirs[0], "entropy"), rel=1e-5)


def test_scaled_logits(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CohereConfig(vocab_size=len(runs.TOKENIZER), logit_scale=4.0, **sizes)
    gradients = []
    for head_of in ("trl", "holdfast"):
        torch.manual_seed(0)
        gradients.append(train(tmp_path, CohereForCausalLM(config), lm_head=head_of)[1])
    for expected, actual in zip(*gradients, strict=True):
        assert (actual - expected).norm() <= 1e-4 * expected.norm()


def test_model_that_does_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(head, "_head", lambda model, dtype: head.Head(model.get_output_embeddings().weight, scale=1.5))
    with pytest.raises(ConfigError, match="log_probs differ from those of TRL's head"):
        train(tmp_path, runs.model(), lm_head="holdfast")


def test_micro_batch_without_a_token_stays_connected(tmp_path):
    trainer, _ = train(tmp_path, runs.model(), lm_head="holdfast")
    ids = torch.arange(6)[None]
    out = trainer.model(input_ids=ids, labels=torch.full_like(ids, -100), fused_lm_head=True)
    out.log_probs.sum().backward()
    assert out.log_probs.tolist() == [[0.0] * 5]
    assert all(not p.grad.any() for p in trainer.model.parameters() if p.grad is not None)


def test_unknown_head(tmp_path):
    with pytest.raises(ConfigError, match="lm_head = 'liger': allowed: holdfast, trl"):
        train(tmp_path, runs.model(), lm_head="liger")

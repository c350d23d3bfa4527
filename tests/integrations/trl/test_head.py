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


@pytest.mark.parametrize("in_float32", [False, True])
def test_bfloat16_model_with_a_float32_head(in_float32, tmp_path):
    """cast_lm_head_to_fp32 holds with our kernels, too: 2.4e-7 from float64, where bfloat16 weights are 4e-4 off."""
    settings = {"cast_lm_head_to_fp32": in_float32, "temperature": 0.8}
    options = {"args": runs.config(tmp_path, **settings), "train_dataset": runs.PROMPTS, "objective": OBJECTIVE}
    base = runs.model().to(torch.bfloat16)
    # Weights that bfloat16 cannot hold, as training makes them in a float32 head.
    weight = base.get_output_embeddings().weight.detach().float()
    weight = weight * (1 + 3e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    trainer = HoldfastGRPOTrainer(
        base, runs.small_digits, processing_class=runs.TOKENIZER, lm_head="holdfast", **options
    )
    layer = trainer.model.get_output_embeddings()
    assert layer.weight.dtype == (torch.float32 if in_float32 else torch.bfloat16)
    layer.weight.data.copy_(weight)
    ids = torch.tensor([[4, 5, 6, 7, 8, 9, 10, 11]])
    with torch.no_grad():
        hidden = trainer.model.base_model(input_ids=ids).last_hidden_state[0, :-1]
        found = trainer.model(input_ids=ids, labels=ids, fused_lm_head=True)
    assert hidden.dtype == torch.bfloat16
    expected = torch.log_softmax(hidden.double() @ weight.double().T / 0.8, dim=1).gather(1, ids[0, 1:, None])[:, 0]
    error = (found.log_probs[0].double() - expected).abs().max()
    assert error < 2e-6 if in_float32 else error > 1e-4


def test_autocast_multiplies_in_its_dtype(tmp_path):
    trainer, _ = train(tmp_path, runs.model(), lm_head="holdfast")
    layer = trainer.model.get_output_embeddings()
    hidden, targets = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)), torch.arange(5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, _ = layer(hidden, targets=targets)
    logits = hidden.bfloat16().double() @ layer.weight.detach().bfloat16().double().T / SHAPE["temperature"]
    expected = torch.log_softmax(logits, dim=1).gather(1, targets[:, None])[:, 0]
    assert (found - expected).abs().max() < 2e-6


def test_model_that_does_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(head, "logit_form", lambda config: (1.5, None))
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

"""The trained model's numerics: recomputed activations, bfloat16 products over float32 weights, devices."""

import pytest
import torch
from safetensors.torch import load_file

from holdfast.errors import ConfigError
from holdfast.rollout.models import character_tokenizer, tiny_model
from holdfast.train.keep.checkpoint import latest_checkpoint
from holdfast.train.policy.forward import Policy
from holdfast.train.policy.head import HeadForm
from holdfast.train.policy.model import build_model, device_of, keep_only_inputs
from holdfast.train.sampling.data import pack
from holdfast.train.settings.config import ModelConfig
from holdfast.train.settings.configfile import build_config
from holdfast.train.warmstart import cached_warm_start

SEQUENCES = pack([(1, 5, 6), (1, 7)], [(8, 9, 10, 2), (5, 2)], pad=0)


def model():
    return tiny_model(character_tokenizer("0123456789"), hidden=32, layers=3, heads=2, seed=3).eval()


def gradients(trained, **options):
    stats = Policy(trained, head=HeadForm(), **options).stats(SEQUENCES)
    return stats, torch.autograd.grad(stats.logprobs.sum(), list(trained.parameters()))


def test_recomputed_activations_change_no_number_and_keep_only_what_goes_into_each_layer():
    kept, sizes = {}, {}
    for name, change in (("all", lambda m: None), ("inputs", keep_only_inputs)):
        trained = model()
        change(trained)
        sizes[name] = 0

        def count(tensor, name=name):
            sizes[name] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            stats = Policy(trained, head=HeadForm()).stats(SEQUENCES)
        grads = torch.autograd.grad(stats.logprobs.sum(), list(trained.parameters()))
        kept[name] = (stats.logprobs, grads)
    assert torch.equal(kept["all"][0], kept["inputs"][0])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(kept["all"][1], kept["inputs"][1], strict=True))
    assert sizes["inputs"] < 0.6 * sizes["all"]


def test_nothing_is_dropped_out_while_activations_are_recomputed():
    trained = model()
    for layer in trained.model.layers:
        layer.self_attn.attention_dropout = 0.5
    keep_only_inputs(trained)
    (first, _), (second, _) = gradients(trained), gradients(trained)
    assert torch.equal(first.logprobs, second.logprobs) and trained.training


def test_products_in_bfloat16_over_float32_weights():
    trained = model()
    (exact, full), (rounded, half) = gradients(trained), gradients(trained, autocast=True)
    gap = (exact.logprobs - rounded.logprobs).abs().max()
    assert 1e-4 < gap < 0.05, "bfloat16 has 8 bits: it shows, and it is no more than that"
    assert {g.dtype for g in half} == {torch.float32} == {p.dtype for p in trained.parameters()}
    whole, other = (torch.cat([g.flatten() for g in grads]) for grads in (full, half))
    assert torch.nn.functional.cosine_similarity(whole, other, dim=0) > 0.999


def test_the_head_multiplies_in_bfloat16_too_and_keeps_its_logits_in_float32():
    """The oracle rounds what goes into the last product, and nothing that comes out of it."""
    trained = model()
    found = Policy(trained, head=HeadForm(), autocast=True).stats(SEQUENCES)
    mask = SEQUENCES.response_mask
    row, offset = mask.nonzero(as_tuple=True)
    position = SEQUENCES.prompt_lengths[row] + offset
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = trained.base_model(SEQUENCES.input_ids, use_cache=False).last_hidden_state[row, position - 1]
        assert hidden.dtype == torch.float32
        weight = trained.get_output_embeddings().weight
        targets = SEQUENCES.input_ids[row, position][:, None]
        rounded, exact = (
            (h.double() @ w.double().T).log_softmax(dim=1).gather(1, targets).squeeze(1)
            for h, w in ((hidden.bfloat16(), weight.bfloat16()), (hidden, weight))
        )
    assert torch.allclose(found.logprobs[mask].double(), rounded, atol=2e-6)
    assert float((rounded - exact).abs().max()) > 1e-4


@pytest.mark.slow
def test_an_update_that_bfloat16_weights_would_lose_is_kept(small_run, small_config, warm_starts):
    """Adam's first step is 1e-5, less than half of bfloat16's spacing from .0079 on: only master weights take it."""
    options = ["--steps", "1", "--optimizer.learning_rate", "1e-5", "--objective", "{preset = 'reinforce'}"]
    options += ["--model.autocast", "true"]
    run, _ = small_run("run", *options)
    before = load_file(cached_warm_start(warm_starts, small_config(*options)) / "model.safetensors")
    after = load_file(latest_checkpoint(run.checkpoints) / "model" / "model.safetensors")
    moved = {name: after[name] - before[name] for name in after}
    large = torch.cat([change[before[name].abs() > 0.0079].abs() for name, change in moved.items()])
    assert len(large) > 1000 and run.read_metrics()[1]["grad_norm"] > 0
    assert float(large.max()) == pytest.approx(1e-5, rel=0.01) and float((large > 5e-6).float().mean()) > 0.5


def test_devices():
    assert device_of(ModelConfig(device="cpu")) == torch.device("cpu")
    if not torch.cuda.is_available():
        assert device_of(ModelConfig()) == torch.device("cpu")
        with pytest.raises(ConfigError, match=r'model.device = "cuda": torch sees no GPU'):
            device_of(ModelConfig(device="cuda"))


def test_the_trained_model_lives_on_the_device_and_its_statistics_where_the_mask_is():
    """A device that is not the processor: everything the policy is given is moved there, and its answer back."""
    built, tokenizer = build_model(build_config({"model": {"hidden": 32, "heads": 2}}), "0123456789")
    assert built.device.type == device_of(ModelConfig()).type and not built.training and len(tokenizer) > 10
    stats = Policy(built, head=HeadForm()).stats(SEQUENCES)
    assert stats.logprobs.device == SEQUENCES.response_mask.device


def test_autocast_needs_float32_weights():
    with pytest.raises(ConfigError, match=r'autocast multiplies in bfloat16.*nearest valid value: dtype = "float32"'):
        build_config({"model": {"dtype": "bfloat16", "autocast": True}})

"""Experts that were recorded are the experts that the trainer computes with, and gates are trained through them."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from holdfast.errors import ConfigError, DataError
from holdfast.rollout.models import character_tokenizer, tiny_model
from holdfast.train.policy.forward import Policy
from holdfast.train.policy.head import HeadForm
from holdfast.train.policy.lora import add_lora
from holdfast.train.policy.model import keep_only_inputs
from holdfast.train.policy.replay import Replay, routers
from holdfast.train.policy.unpadded import make_unpadded
from holdfast.train.sampling.data import pack
from holdfast.train.sampling.routing import chosen_experts
from holdfast.train.settings.config import LoraConfig

SEQUENCES = pack([(1, 5, 6), (1, 5, 6), (1, 4)], [(8, 9, 10, 2), (5, 2), (6, 7, 8)], pad=0)
MASK = SEQUENCES.response_mask


def mixture(kind="Qwen3Moe", seed=0, **options):
    import transformers

    sizes = {"vocab_size": 24, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24}
    sizes |= {"num_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(**sizes | options)
    ).eval()
    with torch.no_grad():
        for router in routers(model):
            router.weight.normal_(generator=torch.Generator().manual_seed(seed + 1))
    return model


def random_experts(seed=0):
    """Of all tokens but the last of each sequence, in two layers, two different ones of eight."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (SEQUENCES.lengths - 1).tolist()
    return tuple(torch.rand(n, 2, 8, generator=generator).topk(2, dim=-1).indices.short() for n in lengths)


def plain_logprobs(model, experts):
    """Of the response tokens, by a model whose routers are told their experts token by token: its own arithmetic."""
    found = []
    for row, one in enumerate(experts):
        length, start = int(SEQUENCES.lengths[row]), int(SEQUENCES.prompt_lengths[row])
        ids = SEQUENCES.input_ids[row, :length]
        for layer, router in enumerate(routers(model)):

            def forward(states, router=router, layer=layer, one=one):
                logits = functional.linear(states.reshape(len(states), -1), router.weight)
                last = logits[-1:].softmax(-1).topk(2).indices
                chosen = torch.cat([one[:, layer].long(), last])
                kept = torch.full_like(logits, -torch.inf).scatter(1, chosen, logits.gather(1, chosen))
                weights = (kept if router.norm_topk_prob else logits).softmax(-1).gather(1, chosen)
                return logits, weights, chosen

            router.forward = forward
        logits = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        found.append(logits[start - 1 : -1].gather(1, ids[start:, None])[:, 0])
    return torch.cat(found)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("head", [HeadForm(), None])
def test_replaying_the_trainer_s_own_experts_changes_no_bit(head, normalised):
    model = mixture(norm_topk_prob=normalised)
    own = replace(SEQUENCES, experts=tuple(chosen_experts(model, SEQUENCES, 1000)))
    before = Policy(model, head=head).stats(own)
    after = Policy(model, head=head, replay=Replay(model)).stats(own)
    assert torch.equal(before.logprobs, after.logprobs) and torch.equal(before.entropy, after.entropy)
    slopes = [torch.autograd.grad(s.logprobs.sum(), list(model.parameters())) for s in (before, after)]
    assert all(torch.equal(a, b) for a, b in zip(*slopes, strict=True))


@pytest.mark.parametrize("unpadded", [False, True])
@pytest.mark.parametrize("normalised", [True, False])
def test_replaying_others_gives_the_model_with_those_experts(normalised, unpadded):
    model = mixture(norm_topk_prob=normalised)
    expected = plain_logprobs(copy.deepcopy(model), experts := random_experts())
    if unpadded:
        assert make_unpadded(model) == ""
    policy = Policy(model, head=HeadForm(), replay=Replay(model), unpadded=unpadded)
    found = policy.stats(replace(SEQUENCES, experts=experts)).logprobs[MASK]
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, policy.stats(SEQUENCES).logprobs[MASK], atol=1e-3), "nothing recorded, its own"


def test_two_copies_of_a_prompt_keep_the_experts_of_each():
    """Rows 0 and 1 have one prompt, which the engine sent to other experts: it is not computed once for both."""
    model = mixture()
    experts = random_experts(3)
    assert not torch.equal(experts[0][:2], experts[1][:2])
    expected = plain_logprobs(copy.deepcopy(model), experts)
    make_unpadded(model)
    policy = Policy(model, head=HeadForm(), replay=Replay(model), unpadded=True)
    wide = replace(SEQUENCES, experts=experts)
    assert torch.allclose(policy.stats(wide).logprobs[MASK], expected, atol=1e-5)
    rows = torch.tensor([2, 0])
    assert torch.allclose(
        policy.stats(wide.select(rows)).logprobs[MASK[rows]], expected[[6, 7, 8, 0, 1, 2, 3]], atol=1e-5
    )


def test_gates_are_trained_through_the_recorded_experts():
    """Every weight has the gradient of a model that was told its experts, routers included."""
    model, experts = mixture(), random_experts()
    told = copy.deepcopy(model)
    loss = Policy(model, replay=Replay(model)).stats(replace(SEQUENCES, experts=experts)).logprobs.sum()
    expected = torch.autograd.grad(plain_logprobs(told, experts).sum(), list(told.parameters()))
    found = torch.autograd.grad(loss, list(model.parameters()))
    for (name, _), ours, theirs in zip(model.named_parameters(), found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5), name
        assert "gate" not in name or ours.abs().sum() > 0


def test_adapters_are_trained_through_the_recorded_experts():
    """With LoRA beside them the routers still listen: as the merged model that was told its experts."""
    adapted = add_lora(mixture(), LoraConfig(rank=4, targets=["q_proj", "v_proj"]), base="here", seed=0)
    parts = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for part in parts.values():  # B starts at 0, where A has no gradient
            part.normal_(std=0.2, generator=torch.Generator().manual_seed(part.numel()))
    experts = random_experts(5)
    merged = copy.deepcopy(adapted).merge_and_unload()
    found = Policy(adapted, replay=Replay(adapted)).stats(replace(SEQUENCES, experts=experts)).logprobs
    assert torch.allclose(found[MASK], plain_logprobs(merged, experts), atol=1e-5)
    assert not torch.allclose(found[MASK], plain_logprobs(merged, random_experts(6)), atol=1e-4)
    assert all("lora_" in name for name in parts)
    assert all(slope.abs().sum() > 0 for slope in torch.autograd.grad(found.sum(), list(parts.values())))


def test_activations_that_are_computed_again_go_to_the_same_experts():
    model, wide = mixture(), replace(SEQUENCES, experts=random_experts())
    slopes = []
    for recomputed in (False, True):
        one = copy.deepcopy(model)
        replay = Replay(one)
        if recomputed:
            keep_only_inputs(one, replay)
        loss = Policy(one, replay=replay).stats(wide).logprobs.sum()
        slopes.append(torch.autograd.grad(loss, list(one.parameters())))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*slopes, strict=True))


def test_a_copy_such_as_the_reference_policy_is_steered_along():
    model = mixture()
    policy = Policy(model, replay=Replay(model))
    wide = replace(SEQUENCES, experts=random_experts())
    reference = replace(policy, model=copy.deepcopy(model).requires_grad_(False))
    assert torch.equal(reference.stats(wide).logprobs, policy.stats(wide).logprobs)


def test_outside_of_a_pass_routers_choose_by_themselves():
    model = mixture()
    before = chosen_experts(model, SEQUENCES, 1000)
    policy = Policy(model, replay=Replay(model))
    policy.stats(replace(SEQUENCES, experts=random_experts()))
    after = chosen_experts(model, SEQUENCES, 1000)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_models_that_cannot_be_steered_are_refused_by_name():
    dense = tiny_model(character_tokenizer("01"), hidden=32, layers=1, heads=2)
    with pytest.raises(ConfigError, match=r"Qwen3ForCausalLM has no routers .*leave it out"):
        Replay(dense)
    other = mixture("Olmoe", num_experts_per_tok=2)
    with pytest.raises(ConfigError, match=r"how OlmoeTopKRouter weighs its experts .*only Qwen3MoeTopKRouter"):
        Replay(other)


@pytest.mark.parametrize("change", [lambda e: e[:, :1], lambda e: e[:, :, :1], lambda e: e + 7])
def test_experts_of_another_model_are_an_error(change):
    model = mixture()
    wrong = tuple(change(one) for one in random_experts())
    with pytest.raises(DataError, match=r"recorded \(\d, \d\) experts .* chooses \(2, 2\) of 8: give both the same"):
        Policy(model, replay=Replay(model)).stats(replace(SEQUENCES, experts=wrong))

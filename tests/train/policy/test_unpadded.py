"""Sequences in one row, prompts shared, against the model's own passes over each sequence alone."""

import copy
import json
import re
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from holdfast.train.keep.folder import RunFolder
from holdfast.train.policy.forward import Policy
from holdfast.train.policy.head import HeadForm
from holdfast.train.policy.model import keep_only_inputs
from holdfast.train.policy.unpadded import NAME, Unsupported, _attend, lay_out, make_unpadded
from holdfast.train.sampling.data import pack
from holdfast.train.settings.config import LoraConfig
from holdfast.train.setup import set_up

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
SHARE, KEEP_APART = 10**6, 0
"""Widths of a model for which sharing a prompt always pays, and never does."""


def make(name, **changes):
    import transformers

    config = getattr(transformers, f"{name}Config")(**SIZES | changes)
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.fixture(scope="module")
def model():
    return make("Qwen3")


@pytest.fixture(scope="module")
def unpadded(model):
    twin = copy.deepcopy(model)
    assert make_unpadded(twin) == ""
    return twin


def rollouts(sizes):
    """[(prompt length, response lengths)] as padded sequences of varied tokens."""
    prompts, responses = [], []
    for number, (length, answers) in enumerate(sizes):
        prompt = tuple(1 + (7 * number + 3 * i) % 39 for i in range(length))
        for seat, answer in enumerate(answers):
            prompts.append(prompt)
            responses.append(tuple(1 + (5 * seat + 11 * i + number) % 39 for i in range(answer)))
    return pack(prompts, responses, pad=0)


def alone(model, sequences):
    """Σ log p over all sampled tokens and each of them, from unpadded single passes; gradients of the sum."""
    model.zero_grad()
    found = []
    for ids, head, length in zip(sequences.input_ids, sequences.prompt_lengths, sequences.lengths, strict=True):
        logp = torch.log_softmax(model(input_ids=ids[None, :length]).logits[0], dim=-1)
        found.append(logp[head - 1 : length - 1].gather(1, ids[head:length, None])[:, 0])
    torch.cat(found).sum().backward()
    return torch.cat(found).detach(), [p.grad.clone() for p in model.parameters()]


def laid_out(model, sequences):
    model.zero_grad()
    stats = Policy(model, head=HeadForm(), unpadded=True).stats(sequences)
    stats.logprobs.sum().backward()
    return stats.logprobs[sequences.response_mask].detach(), [p.grad.clone() for p in model.parameters()]


def close(found, expected):
    return torch.allclose(found[0], expected[0], atol=1e-5) and all(
        (a - b).norm() <= 1e-5 * b.norm() + 1e-6 for a, b in zip(found[1], expected[1], strict=True)
    )


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=4)), min_size=1, max_size=3),
    st.sampled_from([SHARE, KEEP_APART]),
)
def test_values_and_gradients_are_those_of_the_sequences_alone(model, unpadded, sizes, width):
    sequences = rollouts(sizes)
    expected = alone(model, sequences)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.train.policy.forward.lay_out", lambda *args: lay_out(*args[:-1], width))
        assert close(laid_out(unpadded, sequences), expected)


def test_layers_see_every_real_token_once(unpadded):
    """3 prompts of 5, 9 and 2 tokens with 4 + 6, 3 and 1 + 1 response tokens: 16 + 15 rather than 5 rows of 12."""
    seen = []
    handle = unpadded.model.layers[0].mlp.register_forward_hook(lambda module, args, out: seen.append(args[0].shape))
    try:
        sequences = rollouts([(5, [4, 6]), (9, [3]), (2, [1, 1])])
        Policy(unpadded, head=HeadForm(), unpadded=True).stats(sequences)
    finally:
        handle.remove()
    assert seen == [torch.Size([1, 16 + 15, 32])]


@pytest.mark.parametrize("width", [SHARE, KEEP_APART])
def test_tokens_that_round_their_number_change_nothing(model, unpadded, width, monkeypatch):
    sequences = rollouts([(5, [4, 6]), (9, [3])])
    numbers = []

    def rounded(*args):
        layout = lay_out(*args[:-1], width).rounded(20)
        numbers.append([len(x) for x in (layout.input_ids, layout.positions, layout.answers)])
        return layout

    monkeypatch.setattr("holdfast.train.policy.forward.lay_out", rounded)
    assert close(laid_out(unpadded, sequences), alone(model, sequences))
    assert numbers == [[40] * 3]


def test_bfloat16_on_a_cpu_sees_few_numbers_of_tokens(unpadded):
    """oneDNN writes a product's code for every number of tokens: 27 and 70 become 64 and 128."""
    seen = []
    handle = unpadded.model.layers[0].mlp.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[1]))
    try:
        for sizes in ([(5, [4, 6]), (9, [3])], [(50, [20])]):
            Policy(unpadded, head=HeadForm(), unpadded=True, autocast=True).stats(rollouts(sizes))
    finally:
        handle.remove()
    assert seen == [64, 128]


def test_no_keys_are_kept_for_a_next_token(unpadded):
    caches = []
    handle = unpadded.model.register_forward_hook(lambda module, args, out: caches.append(out.past_key_values))
    try:
        Policy(unpadded, head=HeadForm(), unpadded=True).stats(rollouts([(5, [4, 6])]))
    finally:
        handle.remove()
    assert caches == [None]


def tokens(prompt, answer, group, width):
    sequences = rollouts([(prompt, [answer] * group)])
    numbers = sequences.same_prompts()
    return len(lay_out(sequences.input_ids, sequences.prompt_lengths, sequences.lengths, numbers, width).input_ids)


def test_a_prompt_is_shared_where_that_saves_more_than_attention_costs():
    """P = 100, R = 20, G = 8, d = 32: 6·32·700 saved, far above 8·(20·120 - 120²/2) + 100²/2 pairs: shared.

    P = 4, R = 200: 6·32·28 = 5376 against 8·(200·204 - 204²/2) + 8 = 159,944 more pairs: apart.
    P = R = 20, G = 2: 6·20 = 120 for each unit of width against 2·(20·40 - 40²/2) + 20²/2 = 200.
    """
    assert tokens(100, 20, 8, 32) == 100 + 8 * 20
    assert tokens(4, 200, 8, 32) == 8 * 204
    assert tokens(4, 200, 8, 1000) == 4 + 8 * 200  # 168,000 saved
    assert tokens(4, 200, 8, 950) == 8 * 204  # 159,600 saved
    assert (tokens(20, 20, 2, 1), tokens(20, 20, 2, 2)) == (2 * 40, 20 + 2 * 20)


def test_a_layout_moves_with_all_that_it_holds():
    ids, heads, lengths = torch.ones(2, 6, dtype=torch.long), torch.tensor([4, 4]), torch.tensor([6, 5])
    layout = lay_out(ids, heads, lengths, torch.tensor([0, 0]), SHARE)
    moved = layout.to(torch.device("meta"))
    before, after = (
        [held.input_ids, held.positions, held.tokens, held.answers]
        + [tensor for part in held.parts for tensor in (part.queries, part.keys, part.mask)]
        for held in (layout, moved)
    )
    assert [t is None for t in before] == [t is None for t in after] == [False] * 6 + [True] + [False] * 3
    for here, there in zip(before, after, strict=True):
        assert here is None or ((here.device.type, there.device.type) == ("cpu", "meta") and here.shape == there.shape)


def test_equal_prompts_of_different_groups_are_one():
    sequences = pack([(1, 2, 3), (1, 2), (1, 2, 3)], [(3, 4), (3, 3, 4), (5,)], pad=0)
    assert sequences.same_prompts().tolist() == [0, 1, 0]


def test_recomputed_activations_give_the_same_gradients(model):
    sequences = rollouts([(6, [4, 5, 3]), (3, [5, 5])])
    twin = make("Qwen3")
    twin.load_state_dict(model.state_dict())
    assert make_unpadded(twin) == ""
    keep_only_inputs(twin)
    assert close(laid_out(twin, sequences), alone(model, sequences))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Llama", {}),
        ("Qwen2", {"head_dim": None}),
        ("Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
        ("Gemma3", {"layer_types": ["full_attention"] * 2}),
    ],
)
def test_other_models(name, changes):
    if name == "Gemma3":
        from transformers import Gemma3ForCausalLM, Gemma3TextConfig

        torch.manual_seed(0)
        model = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES | changes)).eval()
    else:
        model = make(name, **{key: value for key, value in changes.items() if value is not None})
    sequences = rollouts([(6, [4, 5, 3]), (3, [5, 5])])
    expected = alone(model, sequences)
    assert make_unpadded(model) == ""
    assert close(laid_out(model, sequences), expected)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("Mistral", {"sliding_window": 16}, "attention with sliding_window"),
        ("Gemma2", {}, "attention is 'eager', not 'sdpa'"),
        ("Qwen3", {"attn_implementation": "eager"}, "attention is 'eager', not 'sdpa'"),
        ("Lfm2", {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48}, "depend on more than the tokens"),
    ],
)
def test_models_that_cannot_do_it_stay_as_they_are(name, changes, reason):
    model = make(name, **changes)
    before, ids = model.config._attn_implementation, torch.tensor([[1, 2, 3, 4]])
    expected = model(input_ids=ids).logits
    obstacle = make_unpadded(model)
    assert re.search(reason, obstacle), obstacle
    assert model.config._attn_implementation == before != NAME
    assert torch.equal(model(input_ids=ids).logits, expected)


@pytest.mark.parametrize("kind", [TypeError, ValueError, RuntimeError])
def test_what_a_model_says_against_it_is_told(kind):
    def refuse(module, args, options):
        if "unpadded_layout" in options:
            raise kind("no such argument")

    model = make("Qwen3")
    model.model.layers[0].register_forward_pre_hook(refuse, with_kwargs=True)
    assert make_unpadded(model) == "its forward pass does not take it (no such argument)"
    assert model.config._attn_implementation == "sdpa"


def test_prompts_are_tried_out_shared_and_apart_in_whatever_the_model_computes(monkeypatch):
    parts = []

    def spy(*args):
        parts.append(len((layout := lay_out(*args)).parts))
        return layout

    monkeypatch.setattr("holdfast.train.policy.unpadded.lay_out", spy)
    assert make_unpadded(make("Qwen3").bfloat16()) == ""
    assert parts == [2, 1]


def test_padded_passes_and_saved_models_are_as_before(model, unpadded, tmp_path):
    ids = torch.tensor([[5, 6, 7, 8], [0, 0, 9, 10]])
    seen = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    for mask in (None, seen):
        found, expected = (m(input_ids=ids, attention_mask=mask).logits for m in (unpadded, model))
        assert torch.equal(found, expected)
    written = unpadded.generate(ids, attention_mask=seen, max_new_tokens=5, do_sample=False)
    assert torch.equal(written, model.generate(ids, attention_mask=seen, max_new_tokens=5, do_sample=False))
    unpadded.save_pretrained(tmp_path)
    assert NAME not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


@pytest.mark.parametrize("name", ["sliding_window", "softcap", "s_aux", "position_bias", "cache"])
def test_attention_of_another_kind_is_refused(unpadded, name):
    layout = lay_out(torch.tensor([[1, 2]]), torch.tensor([1]), torch.tensor([2]), torch.tensor([0]), 8)
    states = torch.zeros(1, 2, 2, 4)
    attend = partial(AttentionInterface._global_mapping[NAME], None, states, states, states, None)
    assert attend(unpadded_layout=layout, **{name: None})[0].shape == (1, 2, 2, 4)
    with pytest.raises(Unsupported, match=name):
        attend(unpadded_layout=layout, **{name: 4})


def test_no_mask_over_all_pairs_of_tokens_is_made(unpadded, monkeypatch):
    """It would have N² entries: transformers takes positions that start anew for packed sequences and makes one."""
    made = []
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, NAME, lambda *args, **others: made.append(others))
    Policy(unpadded, head=HeadForm(), unpadded=True).stats(rollouts([(6, [4, 5, 3]), (3, [5, 5])]))
    assert not made
    unpadded(input_ids=torch.ones(2, 9, dtype=torch.long), position_ids=torch.arange(9).flip(0)[None])
    assert made


def test_a_second_time_changes_nothing(unpadded):
    assert make_unpadded(unpadded) == "" and unpadded.config._attn_implementation == NAME


@pytest.mark.filterwarnings("ignore:.*checkpointing:FutureWarning:transformers")
def test_adapters_train_through_it():
    """Layers that PEFT wraps hand the layout on as any other."""
    pytest.importorskip("peft")
    from holdfast.train.policy.lora import add_lora

    model, sequences = make("Qwen3"), rollouts([(6, [4, 5, 3]), (3, [5, 5])])
    for name, parameter in add_lora(model, LoraConfig(rank=2), base="", seed=0).named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    expected = Policy(model, head=HeadForm()).stats(sequences).logprobs
    assert make_unpadded(model) == ""
    found = Policy(model, head=HeadForm(), unpadded=True).stats(sequences).logprobs
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_run_does_as_configured(small_config, tmp_path, warm_starts, monkeypatch, wanted):
    compiled = []
    monkeypatch.setattr("holdfast.train.setup.compile_layers", lambda *model, **how: compiled.append((*model, how)))
    keys = ("unpadded", "compile", "gradient_checkpointing")
    config = small_config(*(word for key in keys for word in (f"--model.{key}", str(wanted).lower())))
    run = set_up(config, RunFolder(tmp_path), resume=False, warm_starts=warm_starts, progress=lambda *progress: None)
    run.close()
    assert run.policy.unpadded == wanted == (run.policy.model.config._attn_implementation == NAME)
    assert compiled == [(run.policy.model, {"recomputed": True})] * wanted


@pytest.mark.parametrize("autocast", [False, True])
def test_attention_in_bfloat16_rounds_only_what_goes_in_and_out_on_a_cpu(autocast):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 40, 8, generator=generator).bfloat16() for heads in (4, 2, 2))
    ids = torch.zeros(2, 30, dtype=torch.long)
    layout = lay_out(ids, torch.tensor([20, 20]), torch.tensor([30, 30]), torch.tensor([0, 0]), SHARE)
    assert (len(layout.parts), layout.input_ids.shape) == (2, (40,))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found, _ = _attend(nn.Identity(), query, key, value, None, scaling=0.3, unpadded_layout=layout)
    exact, _ = _attend(
        nn.Identity(), *(x.float() for x in (query, key, value)), None, scaling=0.3, unpadded_layout=layout
    )
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())


@pytest.mark.parametrize(("device", "expected"), [("cpu", torch.float32), ("meta", torch.bfloat16)])
def test_only_a_cpu_attends_in_float32(monkeypatch, device, expected):
    """Elsewhere attention in 16 bits is the fast one, and autocast decides: "meta" stands for every other device."""
    seen, attention = set(), torch.nn.functional.scaled_dot_product_attention

    def noted(query, key, value, *rest, **options):
        seen.update(x.dtype for x in (query, key, value))
        return attention(query, key, value, *rest, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    ids = torch.zeros(2, 30, dtype=torch.long)
    layout = lay_out(ids, torch.tensor([20, 20]), torch.tensor([30, 30]), torch.tensor([0, 0]), SHARE)
    states = (torch.zeros(1, heads, 40, 8, dtype=torch.bfloat16, device=device) for heads in (4, 2, 2))
    found, _ = _attend(nn.Identity(), *states, None, scaling=0.3, unpadded_layout=layout.to(torch.device(device)))
    assert (seen, found.dtype) == ({expected}, torch.bfloat16)


def test_without_a_layout_scores_are_scaled_and_dropped_as_asked():
    """As transformers calls it outside of our own passes: softmax(q kᵀ · scaling) v over the tokens before."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 4, generator=generator) for _ in range(3))
    module = nn.Module()
    found, _ = _attend(module, query, key, value, None, scaling=0.3)
    later = torch.ones(5, 5).triu(1).bool()
    expected = (query @ key.mT * 0.3).masked_fill(later, -torch.inf).softmax(-1) @ value
    assert torch.allclose(found, expected.transpose(1, 2), atol=1e-6)
    assert not _attend(module, query, key, value, None, dropout=1.0)[0].any()

"""Which attention computes, where its layouts are made, and what of them pays; flash attention by a stand-in."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface

from holdfast.errors import ConfigError
from holdfast.rollout.models import character_tokenizer, tiny_model
from holdfast.train.policy.forward import Policy
from holdfast.train.policy.head import HeadForm
from holdfast.train.policy.lora import add_lora
from holdfast.train.policy.model import use_attention
from holdfast.train.policy.unpadded import Layout, Packed, hidden_states, lay_out, make_unpadded, pack_rows
from holdfast.train.sampling.data import pack
from holdfast.train.settings.config import LoraConfig, ModelConfig

META = torch.device("meta")
SHARE, KEEP_APART = 10**6, 0
SEQUENCES = pack([(1, 5, 6), (1, 5, 6), (1, 7)], [(8, 9, 10, 2), (5, 2), (9, 9, 3)], pad=0)


def model(**sizes):
    return tiny_model(character_tokenizer("0123456789"), **{"hidden": 32, "layers": 2, "heads": 2} | sizes).eval()


def tensors(layout):
    parts = [x for part in getattr(layout, "parts", ()) for x in (part.queries, part.keys, part.mask) if x is not None]
    return [*parts, *(x for x in vars(layout).values() if isinstance(x, torch.Tensor))]


@pytest.mark.parametrize("width", [SHARE, KEEP_APART])
def test_layouts_are_made_on_the_device_without_asking_it_anything(width):
    """ "meta" has no values: whoever reads one, and so would wait for a GPU, fails."""
    arguments = SEQUENCES.prompt_lengths, SEQUENCES.lengths, SEQUENCES.same_prompts()
    there = lay_out(SEQUENCES.input_ids.to(META), *arguments, width)
    assert {x.device for x in tensors(there)} == {META}
    here = lay_out(SEQUENCES.input_ids, *arguments, width)
    assert [(x.shape, x.dtype) for x in tensors(there)] == [(x.shape, x.dtype) for x in tensors(here)]
    packed = pack_rows(SEQUENCES.input_ids.to(META), SEQUENCES.lengths)
    assert {x.device for x in tensors(packed)} == {META} and packed.longest == 7


@pytest.mark.parametrize(("attention", "kind"), [("holdfast_unpadded", Layout), ("flash_attention_2", Packed)])
def test_a_policy_lays_out_where_its_model_is(attention, kind):
    embedding = SimpleNamespace(weight=torch.empty(9, SHARE, device=META))
    there = SimpleNamespace(
        device=META,
        dtype=torch.float32,
        config=SimpleNamespace(_attn_implementation=attention),
        get_input_embeddings=lambda: embedding,
    )
    layout = Policy(there, unpadded=True)._layout(SEQUENCES)
    assert isinstance(layout, kind) and {x.device for x in tensors(layout)} == {META}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=8))
def test_prompts_are_numbered_by_first_occurrence(prompts):
    numbers = {}
    expected = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
    assert pack(prompts, [(1, 2)] * len(prompts), pad=0).same_prompts().tolist() == expected


def parts_on(device, prompt, response, rows, width):
    sequences = pack([tuple(range(prompt))] * rows, [tuple(range(response))] * rows, pad=0)
    numbers = sequences.same_prompts()
    return len(
        lay_out(sequences.input_ids.to(device), sequences.prompt_lengths, sequences.lengths, numbers, width).parts
    )


@pytest.mark.parametrize(
    ("prompt", "response", "cpu", "gpu"),
    [
        # width 64, 8 rows: 6 · 64 · 7 prompt tokens saved against pairs under a mask beyond causal ones.
        (100, 50, 2, 2),  # 268,800 > 5,000 + m · 60,000 - 90,000
        (50, 120, 2, 1),  # 134,400 > 1,250 + m · 163,200 - 115,600 for m = 1, not for m = 2
        (10, 200, 1, 1),  # 26,880 < 50 + m · 336,000 - 176,400
    ],
)
def test_prompts_are_shared_where_the_kernel_makes_it_pay(prompt, response, cpu, gpu):
    assert parts_on("cpu", prompt, response, 8, 64) == cpu
    assert parts_on(META, prompt, response, 8, 64) == gpu


def varlen(module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, **others):
    """What flash attention does with several sequences in a row, one after the other."""
    assert (attention_mask is None and query.shape[0] == 1) or cu_seq_lens_q is None
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    begins = [0, query.shape[2]]
    if cu_seq_lens_q is not None:
        assert cu_seq_lens_q.dtype == torch.int32 and torch.equal(cu_seq_lens_q, others["cu_seq_lens_k"])
        begins = cu_seq_lens_q.tolist()
        longest = max(b - a for a, b in pairwise(begins))
        assert others["max_length_q"] == others["max_length_k"] == longest
    pieces = [
        torch.nn.functional.scaled_dot_product_attention(
            query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], is_causal=True, scale=scaling
        )
        for a, b in pairwise(begins)
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2), None


def trained(model, unpadded):
    model.zero_grad()
    stats = Policy(model, head=HeadForm(), unpadded=unpadded).stats(SEQUENCES)
    stats.logprobs.sum().backward()
    return stats.logprobs.detach(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3"])
def test_flash_attention_gets_sequences_in_one_row(name, monkeypatch):
    monkeypatch.setitem(AttentionInterface._global_mapping, name, varlen)
    expected, twin = trained(model(), False), model()
    twin.config._attn_implementation_internal = name
    assert make_unpadded(twin) == "" and twin.config._attn_implementation == name
    seen = []
    twin.model.layers[0].mlp.register_forward_hook(lambda module, args, out: seen.append(args[0].shape))
    found = trained(twin, True)
    assert seen == [torch.Size([1, 7 + 5 + 5, 32])], "every token of every sequence, no padding"
    assert torch.allclose(found[0], expected[0], atol=1e-5)
    assert all((a - b).norm() <= 1e-5 * b.norm() + 1e-6 for a, b in zip(found[1], expected[1], strict=True))


def test_flash_attention_that_mixes_sequences_is_found_out(monkeypatch):
    def deaf(module, query, key, value, attention_mask, cu_seq_lens_q=None, **others):
        return varlen(module, query, key, value, attention_mask, scaling=others.get("scaling"))

    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", deaf)
    twin = model()
    twin.config._attn_implementation_internal = "flash_attention_2"
    assert "depend on more than the tokens before" in make_unpadded(twin)
    assert twin.config._attn_implementation == "flash_attention_2"


def test_other_kernels_find_the_sequences_in_the_positions():
    """As for flex attention, whose kernel needs a GPU: transformers makes its mask from positions that begin anew."""
    plain, lengths = model(), SEQUENCES.lengths
    row, position = (torch.arange(7) < lengths[:, None]).nonzero(as_tuple=True)
    packed = pack_rows(SEQUENCES.input_ids, lengths)
    assert packed.begins.tolist() == [0, 7, 12, 17] and packed.positions.tolist()[5:9] == [5, 6, 0, 1]
    with torch.no_grad():
        found = hidden_states(plain, packed, row, position)
        alone = [
            plain.base_model(ids[None, :n]).last_hidden_state[0]
            for ids, n in zip(SEQUENCES.input_ids, lengths, strict=True)
        ]
    assert torch.allclose(found, torch.cat(alone), atol=1e-5)


def test_the_setting_reaches_the_model():
    plain = model()
    use_attention(plain, ModelConfig())
    assert plain.config._attn_implementation == "sdpa"
    use_attention(plain, ModelConfig(attention="eager"))
    assert plain.config._attn_implementation == "eager"
    expected, found = trained(model(), False), trained(plain, False)
    assert torch.allclose(found[0], expected[0], atol=1e-5)
    assert make_unpadded(plain) == "its attention is 'eager', not 'sdpa'"


def test_attention_that_the_model_does_not_have(monkeypatch):
    plain = model()
    monkeypatch.setattr(type(plain), "_can_set_attn_implementation", classmethod(lambda kind: False))
    with pytest.raises(ConfigError, match=r'model.attention = "eager": Qwen3ForCausalLM cannot change its attention'):
        use_attention(plain, ModelConfig(attention="eager"))

    def missing(name):
        raise ImportError("flash_attn seems to be not installed")

    monkeypatch.setattr(plain, "set_attn_implementation", missing)
    with pytest.raises(ConfigError, match=r'model.attention = "eager": flash_attn seems.*valid value: "auto"'):
        use_attention(plain, ModelConfig(attention="eager"))


@pytest.mark.slow
def test_a_run_trains_with_the_attention_that_it_names(small_run):
    same, other = (small_run(name, "--steps", "1", "--model.attention", name)[0] for name in ("sdpa", "eager"))
    auto, _ = small_run("auto", "--steps", "1")
    first = [folder.read_metrics()[1] for folder in (auto, same, other)]
    assert first[0]["grad_norm"] == first[1]["grad_norm"] == pytest.approx(first[2]["grad_norm"], rel=1e-4)
    assert first[2]["reward_mean"] == first[0]["reward_mean"], "the engine copied the model before"


@pytest.mark.filterwarnings("ignore")
def test_adapters_over_bfloat16_weights_are_kept_in_float32():
    """So that small learning rates move them, and [lora] is exempt from the rule for bfloat16 weights."""
    pytest.importorskip("peft")
    narrow = model().bfloat16()
    add_lora(narrow, LoraConfig(rank=2), base="", seed=0)
    dtypes = {p.requires_grad: p.dtype for p in narrow.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    assert make_unpadded(narrow) == ""
    stats = Policy(narrow, head=HeadForm(), unpadded=True).stats(SEQUENCES)
    stats.logprobs.sum().backward()
    assert all(p.grad is not None for p in narrow.parameters() if p.requires_grad)

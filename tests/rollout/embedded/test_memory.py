"""What the engine holds: keys and values within their room, no more copies of the weights than it needs."""

import pytest
import torch

from allocations import peak_bytes
from holdfast.errors import ConfigError, EngineError
from holdfast.rollout.embedded.embedded import EmbeddedEngine
from holdfast.rollout.embedded.static import advance
from holdfast.rollout.engine import Sampling
from holdfast.rollout.models import LazyWeights, cache_bytes, copied

DECODERS = {"fused": {}, "static": {"compile": True}, "hub": {"fused": False}}
ROWS, PROMPT, TOKENS = 64, 8, 40


@pytest.fixture(autouse=True)
def not_compiled(monkeypatch):
    monkeypatch.setattr("holdfast.rollout.embedded.fused.compiled_step", lambda device: advance)
    for module in ("fused", "static"):  # so that the room doubles several times
        monkeypatch.setattr(f"holdfast.rollout.embedded.{module}.FIRST_ROOM", 8)


def engine(model, **options):
    return EmbeddedEngine(model, **{"eos_token_id": -1, "pad_token_id": 0} | options)


def drawn(made, prompts, tokens=TOKENS, **options):
    return made.generate(prompts, Sampling(max_tokens=tokens), seed=3, sequence_ids=range(len(prompts)), **options)


def prompts(count, length=PROMPT):
    """Distinct prompts of one length."""
    return [[2, *(3 + (row // 27**place) % 27 for place in range(length - 1))] for row in range(count)]


def test_a_token_s_keys_and_values(make_model):
    """2 · 2 layers · 2 key heads · 8 wide · 4 bytes; GPT-2 has as many key heads as heads: 2 · 2 · 4 · 8 · 2 bytes."""
    assert cache_bytes(make_model(head_dim=8).config, torch.float32) == 2 * 2 * 2 * 8 * 4 == 256
    assert cache_bytes(make_model(head_dim=24).config, torch.bfloat16) == 2 * 2 * 2 * 24 * 2
    assert cache_bytes(make_model("gpt2").config, torch.bfloat16) == 2 * 2 * 4 * 8 * 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.slow
def test_the_cache_is_in_the_engine_s_dtype_and_never_there_twice(make_model, decoder, precision):
    """Eight layers: 1/8 for the layer that grows, 2/8 in bfloat16 for the layer in use in float32, the rest for what a
    step computes. All of it in float32 and doubled by copying was 1.6 in float32 and 3 in bfloat16.

    The static decoder rounds lengths to 16 and pads the products of one layer.
    """
    model = make_model(num_hidden_layers=8, num_key_value_heads=4)
    made = engine(model, precision=precision, **DECODERS[decoder])
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    whole = ROWS * (PROMPT + TOKENS) * cache_bytes(model.config, dtype)
    peak = peak_bytes(lambda: drawn(made, prompts(ROWS)))
    extra = {"fused": 0.25, "static": 0.6, "hub": 0.25}[decoder] + (0.4 if precision == "bfloat16" else 0)
    assert 0.95 * whole < peak < (1 + extra) * whole, peak / whole


@pytest.mark.parametrize("decoder", DECODERS)
def test_rows_are_decoded_in_blocks_that_fit_and_draw_the_same(make_model, decoder, monkeypatch):
    model = make_model()
    row = (PROMPT + 24) * cache_bytes(model.config, torch.float32)
    whole = drawn(engine(model, **DECODERS[decoder]), prompts(10), 24)
    made = engine(model, cache_gib=4.5 * row / 2**30, **DECODERS[decoder])
    sizes, start = [], made._decoder.start

    def recorded(some, owners, most):
        sizes.append(len(owners))
        return start(some, owners, most)

    monkeypatch.setattr(made._decoder, "start", recorded)
    blocks = drawn(made, prompts(10), 24, return_distributions=True, return_top=2)
    assert sizes == [4, 4, 2], "at most four fit; three blocks are needed"
    for one, other in zip(whole, blocks, strict=True):
        assert one.token_ids == other.token_ids
        assert torch.allclose(one.logprobs, other.logprobs, atol=1e-4)
    assert all(len(one.distributions) == len(one.top_ids) == 24 for one in blocks)


def test_blocks_are_of_about_the_same_size(make_model):
    model = make_model()
    row = 32 * cache_bytes(model.config, torch.float32)
    made = engine(model, cache_gib=6 * row / 2**30)
    assert [made._rows_at_a_time(rows, 32) for rows in (1, 6, 7, 12, 13)] == [1, 6, 4, 6, 5]
    assert engine(model)._rows_at_a_time(7, 10**9) == 7


def test_a_bfloat16_cache_has_twice_the_rows(make_model):
    model, room = make_model(head_dim=8), 8 * 32 * 256 / 2**30
    assert engine(model, cache_gib=room)._rows_at_a_time(32, 32) == 8
    assert engine(model, cache_gib=room, precision="bfloat16")._rows_at_a_time(32, 32) == 16
    assert engine(model.bfloat16(), cache_gib=room, precision=None)._rows_at_a_time(32, 32) == 16


def test_a_row_that_does_not_fit_is_an_error_with_the_setting(make_model):
    made = engine(make_model(head_dim=8), cache_gib=31 * 256 / 2**30)
    with pytest.raises(
        EngineError, match=r"one response of 32 tokens .* raise engine.cache_gib \(evaluation.cache_gib"
    ):
        drawn(made, prompts(2), 24)


def test_distributions_are_not_kept_twice(make_model):
    """They are written into one table from the last position on, each let go at once; 2 tables before."""
    model = make_model(vocab_size=4096)
    made, table = engine(model), 4 * 64 * 4096 * 4
    base = peak_bytes(lambda: drawn(made, prompts(4), 64))
    peak = peak_bytes(lambda: drawn(made, prompts(4), 64, return_distributions=True))
    assert table < peak - base < 2.2 * table


def weights_of(model):
    return sum(parameter.numel() for parameter in model.parameters()) * 4


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_without_a_precision_the_engine_runs_the_model_itself(make_model, kind):
    sizes = {"n_embd": 128} if kind == "gpt2" else {"hidden_size": 128, "intermediate_size": 512}
    model = make_model(kind, **sizes).train()
    copy = drawn(engine(model), prompts(3), 8)
    peak = peak_bytes(lambda: engine(model, precision=None))
    assert peak < weights_of(model) / 20
    made = engine(model, precision=None)
    assert made.model is model
    assert [one.token_ids for one in drawn(made, prompts(3), 8)] == [one.token_ids for one in copy]
    assert model.training and made.policy_version == 0
    with torch.no_grad():
        model.get_output_embeddings().weight.neg_()
    assert peak_bytes(lambda: made.sync(model, 7)) < weights_of(model) / 20
    assert made.policy_version == 7
    assert [one.token_ids for one in drawn(made, prompts(3), 8)] == [
        one.token_ids for one in drawn(engine(model), prompts(3), 8)
    ]


def test_a_model_in_training_is_left_as_it_was(make_model):
    """Dropout and recomputation are for training; an error in between changes nothing."""
    model = make_model("gpt2", resid_pdrop=0.5)
    expected = [one.token_ids for one in drawn(engine(model.eval()), prompts(3), 8)]
    made = engine(model.train(), precision=None)
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)(
        {"use_reentrant": False}
    )
    assert [one.token_ids for one in drawn(made, prompts(3), 8)] == expected
    assert model.training
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(EngineError, match="not finite"):
        drawn(made, prompts(3), 8)
    assert model.training


def test_what_is_compiled_for_training_is_not_compiled_for_this(make_model):
    model = make_model()
    calls = []
    for layer in model.model.layers:
        layer.compile(backend=lambda graph, inputs: calls.append(graph) or graph.forward)
    drawn(engine(model, precision=None), prompts(2), 4)
    assert not calls


def test_a_lag_needs_a_copy(make_model):
    with pytest.raises(ConfigError, match=r"engine.lag = 2 without a copy of the weights"):
        engine(make_model(), precision=None, lag=2)


@pytest.mark.parametrize("precision", ["float32", "int8", "bfloat16"])
def test_new_weights_take_the_place_of_old_ones(make_model, precision):
    """Old snapshot and old layers go before the new ones are made; before, both were there twice for a while."""
    model = make_model(hidden_size=128, intermediate_size=512, num_hidden_layers=8)

    def synced():
        made = engine(model, precision=precision)
        made.sync(model, 1)
        return made

    assert peak_bytes(synced) < 1.15 * peak_bytes(lambda: engine(model, precision=precision))


def test_lazy_weights_are_made_one_at_a_time_and_keep_their_ties():
    """A tensor that is made may get the address of one that was let go: they are different all the same."""
    size = 1 << 20
    tied = torch.full((size,), 7.0)
    made = {f"w{i}": (lambda i=i: torch.full((size,), float(i))) for i in range(6)}
    weights = LazyWeights({"a": tied, "b": tied}, made)
    assert list(weights) == ["a", "b", *made] and len(weights) == 8
    narrow = copied(weights, lambda tensor: tensor[:2].clone())
    assert {name: value.tolist() for name, value in narrow.items()} == {"a": [7.0] * 2, "b": [7.0] * 2} | {
        f"w{i}": [float(i)] * 2 for i in range(6)
    }
    assert narrow["a"] is narrow["b"]
    assert peak_bytes(lambda: copied(weights, lambda tensor: tensor[:2].clone())) < 1.1 * size * 4

"""The engine against a plain forward pass over the whole sequence, and its promises about seeds and lag."""

import copy
import inspect
import itertools
import math
from dataclasses import dataclass

import jaxtyping
import pytest
import torch

from holdfast.core.divergences import Support
from holdfast.errors import ConfigError, EngineError
from holdfast.rollout.embedded.decoder import HubDecoder
from holdfast.rollout.embedded.drawing import draw as draw_tokens
from holdfast.rollout.embedded.embedded import EmbeddedEngine
from holdfast.rollout.embedded.fused import FusedDecoder, FusedDecoding
from holdfast.rollout.embedded.static import StaticDecoding, advance, compiled_step
from holdfast.rollout.engine import Engine, Sampling, sampling_logprobs

# groups of 3, 2, 2 and 1 rows, out of order, of different lengths
PROMPTS = [[2, 3, 4, 5], [2, 7], [2, 3, 4, 5], [2, 9, 8, 9, 9, 9, 4], [2, 7], [2, 3, 4, 5], [2, 9, 8, 9, 9, 9, 4], [2]]

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 32}
LLAMA3 = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
DECODERS = {"fused": {}, "static": {"compile": True}, "hub": {"fused": False}}


@pytest.fixture(autouse=True)
def not_compiled(monkeypatch):
    """What would be compiled runs as it stands: the same numbers without minutes of compilation."""
    monkeypatch.setattr("holdfast.rollout.embedded.fused.compiled_step", lambda device: advance)


def engine(model, **options):
    return EmbeddedEngine(model, **{"eos_token_id": 1, "pad_token_id": 0} | options)


def draw(made, prompts=PROMPTS, seed=5, ids=None, distributions=True, **sampling):
    ids = range(len(prompts)) if ids is None else ids
    sampling = Sampling(**{"max_tokens": 24} | sampling)
    return made.generate(prompts, sampling, seed=seed, sequence_ids=ids, return_distributions=distributions)


def assert_same_but_for_jumps(ours, theirs):
    """The same int8 numbers, computed in another order of sums.

    Where sums differ in their last bit, an activation on the edge between two levels may fall to either side, which
    changes that response from there on by as much as a level is worth. How often that happens depends on the
    processor, so what is compared is most of the positions, as long as the tokens before them are the same.
    """
    distances = []
    for own, other in zip(ours, theirs, strict=True):
        pairs = zip(own.token_ids, other.token_ids, strict=False)
        alike = 1 + sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        distances.append((own.distributions[:alike] - other.distributions[:alike]).abs().amax(dim=1))
    found = torch.cat(distances)
    assert len(found) > sum(len(own.token_ids) for own in ours) / 2
    assert float(found.median()) < 1e-5


def whole_forward(model, prompt, completion):
    """Logits that predict each response token, from one pass over prompt and response."""
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    with torch.no_grad():
        return model(ids).logits[0, len(prompt) - 1 : -1].float()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("qwen3", {"head_dim": 12, "rms_norm_eps": 0.3}),
        ("qwen3", {"tie_word_embeddings": True, "num_key_value_heads": 4, "head_dim": 8}),
        ("qwen2", {"num_key_value_heads": 1, "rope_parameters": LLAMA3}),
        (
            "llama",
            {
                "attention_bias": True,
                "mlp_bias": True,
                "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            },
        ),
        ("llama", {"num_key_value_heads": 4, "rope_parameters": YARN}),
        ("gpt2", {}),
    ],
)
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("support", [{}, {"temperature": 0.7, "top_p": 0.9, "top_k": 12}])
def test_distributions_are_those_of_a_whole_forward_pass(make_model, kind, options, decoder, support):
    if kind == "gpt2" and decoder == "static":
        pytest.skip("the decoder of our own does not run it")
    model = make_model(kind, **options)
    # an end token that does come up
    end = draw(engine(model, eos_token_id=-1), **support)[0].token_ids[8]
    made = engine(model, eos_token_id=end, **DECODERS[decoder])
    assert isinstance(made._decoder, HubDecoder if decoder == "hub" or kind == "gpt2" else FusedDecoder)
    prompts = PROMPTS * 3
    completions = draw(made, prompts=prompts, **support)
    assert "stop" in {c.finish_reason for c in completions}
    assert len({len(c.token_ids) for c in completions}) > 2  # rows have left the batch at several times
    for prompt, completion in zip(prompts, completions, strict=True):
        expected = sampling_logprobs(whole_forward(model, prompt, completion), Sampling(**support))
        assert torch.equal(completion.distributions.isfinite(), expected.isfinite())
        assert torch.allclose(completion.distributions, expected, atol=2e-4)
        tokens = torch.tensor(completion.token_ids)[:, None]
        assert torch.equal(completion.logprobs, completion.distributions.gather(1, tokens).squeeze(1))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gpt2", {}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": True}),
        ("mistral", {}),
    ],
)
def test_models_of_another_kind_run_through_their_own_forward_pass(make_model, kind, options):
    assert isinstance(engine(make_model(kind, **options))._decoder, HubDecoder)


@pytest.mark.parametrize("precision", ["float32", "int8", "int8_weight", "int4_weight", "fp8_weight"])
@pytest.mark.parametrize("decoder", ["fused", "static"])
def test_our_decoders_draw_what_the_model_itself_does(make_model, precision, decoder):
    model = make_model()
    ours, theirs = (draw(engine(model, precision=precision, **DECODERS[name])) for name in (decoder, "hub"))
    if precision == "int8":
        assert_same_but_for_jumps(ours, theirs)
        return
    for own, other in zip(ours, theirs, strict=True):
        assert own.token_ids == other.token_ids
        assert torch.allclose(own.logprobs, other.logprobs, atol=1e-4)
        assert float((own.logprobs - other.logprobs).abs().median()) < 1e-5


def test_bfloat16_decoders_differ_by_rounding_only(make_model):
    model = make_model(initializer_range=0.1)
    for options in DECODERS.values():
        for prompt, completion in zip(PROMPTS, draw(engine(model, precision="bfloat16", **options)), strict=True):
            expected = whole_forward(model, prompt, completion).log_softmax(dim=-1)
            distance = (completion.distributions - expected).abs()
            assert 0 < float(distance.mean()) < 0.02


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.slow
def test_a_response_does_not_depend_on_its_batch(make_model, decoder):
    """24 rows, of which some end at once and leave: the draws of those that stay are still their own."""
    made, prompts = engine(make_model(), eos_token_id=22, **DECODERS[decoder]), PROMPTS * 3
    together = draw(made, prompts=prompts, max_tokens=50)
    backwards = draw(made, prompts=prompts[::-1], ids=range(len(prompts))[::-1], max_tokens=50)[::-1]
    lengths = sorted(len(completion.token_ids) for completion in together)
    assert lengths[len(lengths) // 3] < 45, "a third leaves before the end"
    for row, prompt in enumerate(prompts):
        alone = draw(made, prompts=[prompt], ids=[row], max_tokens=50)[0]
        for other in (alone, backwards[row]):
            assert other.token_ids == together[row].token_ids
            assert other.finish_reason == together[row].finish_reason
            assert torch.allclose(other.logprobs, together[row].logprobs, atol=1e-4)


def test_the_same_call_gives_the_same_bits_and_another_seed_does_not(make_model):
    model = make_model()
    first, again = draw(engine(model)), draw(engine(model))
    assert [c.token_ids for c in first] == [c.token_ids for c in again]
    assert all(torch.equal(a.logprobs, b.logprobs) for a, b in zip(first, again, strict=True))
    assert [c.token_ids for c in first] != [c.token_ids for c in draw(engine(model), seed=6)]
    assert [c.token_ids for c in first] != [c.token_ids for c in draw(engine(model), ids=range(8, 16))]


def asked(**support):
    sampling = Sampling(max_tokens=24, **support)
    return {"prompts": PROMPTS, "sampling": sampling, "seed": 5, "sequence_ids": range(8)}


@pytest.mark.parametrize("support", [{}, {"top_k": 3}])
def test_the_likeliest_tokens_are_those_of_the_distribution(make_model, support):
    made, arguments = engine(make_model()), asked(**support)
    whole = made.generate(**arguments, return_distributions=True)
    for full, top in zip(whole, made.generate(**arguments, return_top=5), strict=True):
        assert (top.distributions, full.top_ids, full.top_logprobs) == (None, None, None)
        ordered, order = full.distributions.sort(dim=1, descending=True, stable=True)
        assert torch.equal(top.top_logprobs, ordered[:, :5])
        kept = min(5, support.get("top_k", 5))
        assert torch.equal(top.top_ids[:, :kept], order[:, :kept])
        assert bool(top.top_logprobs[:, kept:].isneginf().all())
    assert made.generate(**arguments, return_top=99)[0].top_ids.shape[1] == 30


def test_tokens_are_drawn_as_often_as_their_probability_says(make_model):
    made = engine(make_model(initializer_range=0.2))
    completions = draw(made, prompts=[[2, 3]] * 4000, max_tokens=1)
    expected = completions[0].distributions[0].exp()
    seen = torch.bincount(torch.tensor([c.token_ids[0] for c in completions]), minlength=30) / 4000
    # five standard deviations of a share of 4000 draws
    assert torch.all((seen - expected).abs() <= 5 * (expected * (1 - expected) / 4000).sqrt() + 1e-9)


@pytest.mark.parametrize("decoder", ["fused", "static"])
def test_a_long_response_outgrows_the_first_room(make_model, decoder):
    model = make_model(max_position_embeddings=512)
    completion = draw(engine(model, eos_token_id=-1, **DECODERS[decoder]), prompts=[[2, 3]], max_tokens=300)[0]
    assert (len(completion.token_ids), completion.finish_reason) == (300, "length")
    expected = whole_forward(model, [2, 3], completion).log_softmax(dim=-1)
    assert torch.allclose(completion.distributions, expected, atol=5e-4)


def started(model, prompts, owners, max_tokens):
    """A batch of the plain decoder and one of that with fixed sizes, which have read the prompts."""
    batches = []
    for decoder in (FusedDecoder(model, "float32", compile=flag) for flag in (False, True)):
        decoder.load(dict(model.state_dict()))
        batches.append(decoder.start(prompts, owners, max_tokens)[0])
    assert [type(batch) for batch in batches] == [FusedDecoding, StaticDecoding]
    return batches


def step_both(batches, tokens, uniforms):
    """One step of each batch: the same distributions, and each row's token is drawn from its own by its own number."""
    plain, static = (batch.step(tokens, uniforms, Sampling()) for batch in batches)
    assert torch.allclose(plain.distribution, static.distribution, atol=1e-5)
    for drawn in (plain, static):
        assert torch.equal(drawn.tokens, draw_tokens(drawn.distribution, uniforms))
        assert torch.equal(drawn.logprobs, drawn.distribution[torch.arange(len(tokens)), drawn.tokens])


@pytest.mark.parametrize("heads", [2, 4])
def test_rows_stay_seated_until_a_smaller_size_holds_those_that_run(make_model, heads):
    """Four groups of 16 share their prompts, then leave in an order that no size fits; every step is compared."""
    prompts = [[2, 3, 4, 5], [2, 7], [2, 9, 8, 9, 9], [2] * 70]
    batches = started(make_model(num_key_value_heads=heads), prompts, torch.arange(4).repeat_interleave(16), 40)
    generator, sizes, live = torch.Generator().manual_seed(0), [], 64
    with torch.inference_mode():
        for leaving in (0, 3, 29, 0, 7, 9, 0, 8, 7):  # 64, 61, 32, 32, 25, 16, 16, 8 and 1 rows
            if leaving:
                rows = torch.randperm(live, generator=generator)[leaving:].sort().values
                live = len(rows)
                for batch in batches:
                    batch.keep(rows)
            tokens = torch.randint(2, 30, (live,), generator=generator)
            step_both(batches, tokens, torch.rand(live, generator=generator, dtype=torch.float64))
            sizes.append((len(batches[1].tokens), batches[1].shared is not None, batches[1].used))
    # seats, whether prompts are shared, and the slots in use: 70 prompt tokens take 80 once every row has its own
    assert sizes == [(64, True, 1), (64, True, 2), *((32, False, 80 + n) for n in (3, 4, 5))] + [
        (16, False, 80 + n) for n in (6, 7, 8, 9)
    ]
    assert (batches[0].room, len(batches[1].bias)) == (40, 128), "40 response tokens, and no more than rounds them"


def test_the_room_for_a_response_doubles_up_to_its_longest(make_model):
    """After 64 prompt tokens, which need no padding, the last token of a room stands at the end of the tables."""
    batches = started(make_model(max_position_embeddings=512), [[*range(2, 18)] * 4], torch.zeros(1).long(), 300)
    rooms = []
    with torch.inference_mode():
        for step in range(300):
            step_both(batches, torch.tensor([2 + step * 7 % 28]), torch.tensor([step / 300], dtype=torch.float64))
            rooms.append((batches[0].room, len(batches[1].bias)))
    assert rooms == [(128, 128)] * 128 + [(256, 256)] * 128 + [(300, 304)] * 44
    (own_keys, own_values), (static_keys, static_values) = (batch.cache[0] for batch in batches)
    assert {own_keys.shape[1], own_values.shape[1]} == {300}
    assert {len(static_keys), len(static_values)} == {304}, "in steps of 16"


@dataclass(frozen=True)
class Unchecked(Support):
    """Made without the shape checks' own wrappers, which cannot be traced."""

    kept = inspect.unwrap(Support.kept)

    def __post_init__(self) -> None:
        pass


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.slow
def test_a_step_is_one_graph_per_size_and_new_weights_need_none(make_model, monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # shape checks cannot be traced
    monkeypatch.setattr("holdfast.rollout.engine.Support", Unchecked)
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    real = torch.compile

    def without_code(function, *, dynamic, options):
        assert options["cpp_wrapper"] and not dynamic
        options = {"guard_filter_fn": options["guard_filter_fn"]}
        # Without the shape checks' own wrapper, behind which arguments have other names.
        return real(inspect.unwrap(function), dynamic=dynamic, fullgraph=True, backend=count, options=options)

    monkeypatch.setattr(torch, "compile", without_code)
    monkeypatch.setattr("holdfast.rollout.embedded.fused.compiled_step", compiled_step)
    models = [make_model(seed=seed) for seed in range(2)]
    made = engine(models[0], eos_token_id=-1, compile=True)
    for version, model in enumerate(models):
        if version:
            made.sync(model, version)
        expected = draw(engine(model, eos_token_id=-1))
        for own, other in zip(draw(made), expected, strict=True):
            assert torch.allclose(own.distributions, other.distributions, atol=1e-5)
    assert len(graphs) == 1
    for copies in (2, 3, 1):  # 16 rows sit where 8 did, 24 take 32 seats
        draw(made, prompts=PROMPTS * copies)
    assert len(graphs) == 2
    for width in (3, 40, 20):  # groups of one size: whatever their prompts' length, and the responses'
        draw(made, prompts=[[2] * width] * 8 + [[3]] * 8, max_tokens=60)
    assert len(graphs) == 3
    # the same sizes, but another way to compute
    other = engine(models[0], eos_token_id=-1, compile=True, precision="int8")
    assert_same_but_for_jumps(draw(other), draw(engine(models[0], eos_token_id=-1, precision="int8")))
    assert len(graphs) == 4
    blurred = make_model(rms_norm_eps=1.0)  # nothing but a number that a graph holds as a constant
    other = engine(blurred, eos_token_id=-1, compile=True)
    for own, expected in zip(draw(other), draw(engine(blurred, eos_token_id=-1)), strict=True):
        assert torch.allclose(own.distributions, expected.distributions, atol=1e-5)
    assert len(graphs) == 5
    for how in ({"temperature": 0.5}, {"temperature": 0.0}, {"top_k": 3, "min_p": 0.01}, {"top_p": 0.8}):
        for own, expected in zip(draw(made, **how), draw(engine(models[1], eos_token_id=-1), **how), strict=True):
            assert torch.allclose(own.distributions.exp(), expected.distributions.exp(), atol=1e-5)
    assert len(graphs) == 9
    draw(made, max_tokens=5)  # for which no graph is needed
    assert len(graphs) == 9
    for rows in range(1, 11):  # more sizes than torch compiles by itself
        draw(made, prompts=[[2, 3]] * rows, max_tokens=3)
    assert len(graphs) == 19
    torch.compiler.reset()


def test_keys_are_attended_as_a_bfloat16_cache_holds_them(make_model):
    model = make_model().bfloat16()
    decoder = FusedDecoder(model, "bfloat16", compile=False)
    decoder.load(model.state_dict())
    cos, sin = decoder.tables(torch.arange(6))[0]
    hidden = decoder.embedding[torch.arange(6)]
    _, keys, values = decoder.attended(decoder.blocks[0], hidden, cos, sin)
    for held in (keys, values):
        assert held.dtype == torch.float32 and torch.equal(held, held.bfloat16().float())


def test_greedy_takes_the_likeliest_token(make_model):
    model = make_model()
    for prompt, completion in zip(PROMPTS, draw(engine(model), temperature=0.0), strict=True):
        assert whole_forward(model, prompt, completion).argmax(dim=-1).tolist() == list(completion.token_ids)
        assert not completion.logprobs.any()


def test_nothing_is_decoded_once_every_row_has_ended(make_model, monkeypatch):
    steps, step = [], FusedDecoding.step
    monkeypatch.setattr(FusedDecoding, "step", lambda *given: steps.append(1) or step(*given))
    model = make_model(max_position_embeddings=512)
    completions = draw(engine(model, eos_token_id=15), prompts=[[2, 4]] * 40, max_tokens=400)
    assert len(steps) + 1 == max(len(completion.token_ids) for completion in completions) < 400


def test_a_response_ends_with_its_first_end_token(make_model):
    for completion in draw(engine(make_model()), prompts=[[2, 4]] * 60):
        assert (completion.finish_reason == "stop") == (completion.token_ids[-1] == 1)
        assert 1 not in completion.token_ids[:-1]
        assert len(completion.token_ids) == 24 or completion.finish_reason == "stop"


@pytest.mark.parametrize("precision", ["float32", "int8", "bfloat16"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_the_engine_lags(make_model, precision, decoder):
    models = [make_model(seed=seed) for seed in range(5)]
    made = engine(models[0], precision=precision, lag=2, **DECODERS[decoder])
    # after the sync of version v, version max(0, v - 2) samples
    for version, model in enumerate(models):
        if version:
            made.sync(model, version)
        assert made.policy_version == max(0, version - 2)
        expected = draw(engine(models[max(0, version - 2)], precision=precision, **DECODERS[decoder]))
        found = draw(made)
        assert [c.token_ids for c in found] == [c.token_ids for c in expected]
        assert {c.policy_version for c in found} == {max(0, version - 2)}


def test_later_changes_of_the_trainer_do_not_reach_the_engine(make_model):
    model = make_model()
    before = draw(made := engine(model))
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(1.0)
    assert [c.token_ids for c in draw(made)] == [c.token_ids for c in before]


@pytest.mark.parametrize(("precision", "width"), [("float32", 4), ("int8_weight", 4), ("bfloat16", 2)])
def test_queued_weights_are_no_wider_than_the_engine_and_tied_ones_are_one(make_model, precision, width):
    made = engine(make_model(tie_word_embeddings=True), precision=precision, lag=1)
    [(_, weights)] = made.state_dict()["snapshots"]
    assert {tensor.element_size() for tensor in weights.values()} == {width}
    assert weights["lm_head.weight"] is weights["model.embed_tokens.weight"]


def test_a_resumed_engine_continues_with_its_queue(make_model, tmp_path):
    models = [make_model(seed=seed) for seed in range(4)]
    made = engine(models[0], precision="int8", lag=2)
    for version in (1, 2, 3):
        made.sync(models[version], version)
    torch.save(made.state_dict(), tmp_path / "engine.pt")
    fresh = engine(models[3], precision="int8", lag=2)
    fresh.load_state_dict(torch.load(tmp_path / "engine.pt", weights_only=True))
    for _ in range(2):
        assert fresh.policy_version == made.policy_version
        ours, theirs = draw(fresh), draw(made)
        assert all(torch.equal(a.distributions, b.distributions) for a, b in zip(ours, theirs, strict=True))
        for running in (made, fresh):
            running.sync(models[0], 4)
    with pytest.raises(EngineError, match=r"holds 3 weight versions, engine.lag = 0 needs 1 to 1"):
        engine(models[0]).load_state_dict(made.state_dict())


def test_recorded_logprobs_can_enter_a_graph(make_model):
    completion = draw(engine(make_model()))[0]
    factor = torch.ones(len(completion.token_ids), requires_grad=True)
    (factor * completion.logprobs).sum().backward()
    assert torch.allclose(factor.grad, completion.logprobs)
    (factor[:, None] * completion.distributions).sum().backward()


def test_bad_calls_say_what_is_wrong(make_model):
    model = make_model()
    made = engine(model)
    assert isinstance(made, Engine)
    assert made.generate([], Sampling(), seed=0, sequence_ids=[]) == []
    with pytest.raises(EngineError, match="2 prompts but 1 sequence ids"):
        made.generate([[2], [2]], Sampling(), seed=0, sequence_ids=[0])
    with pytest.raises(EngineError, match=r"a prompt is empty"):
        made.generate([[2], []], Sampling(), seed=0, sequence_ids=[0, 1])
    with pytest.raises(ConfigError, match=r"engine\.lag = -1: must be at least 0"):
        engine(model, lag=-1)
    with pytest.raises(ConfigError, match=r"engine\.precision = 'int9': did you mean int8"):
        engine(model, precision="int9")
    with pytest.raises(ConfigError, match=r"engine\.compile: GPT2LMHeadModel runs through its own forward pass"):
        engine(make_model("gpt2"), compile=True)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.lm_head.weight[3] = math.nan
    made.sync(broken, 1)
    with pytest.raises(EngineError, match="not finite"):
        draw(made)
    made.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        draw(made)


@pytest.mark.parametrize(("precision", "head"), [("bfloat16,head=float32", True), ("bfloat16,cache=float32", False)])
def test_a_wider_head_or_cache_brings_a_narrow_engine_closer(make_model, precision, head):
    model = make_model("llama")
    whole = draw(engine(model, precision="float32"), max_tokens=1)

    def gap(made):
        theirs = draw(made, max_tokens=1)
        pairs = zip(theirs, whole, strict=True)
        return max(float((a.distributions[0] - b.distributions[0]).abs().max()) for a, b in pairs)

    plain, wider = engine(model, precision="bfloat16"), engine(model, precision=precision)
    logits = draw(wider, max_tokens=1)[0].distributions[0]
    assert 0 < gap(wider) < gap(plain) * (1 if head else 1.05)
    # logits of a head in bfloat16 are its numbers, less one constant; those of a float32 head are not
    levels = (logits - logits.max()).unique()
    assert (len(levels) == len(logits)) or not head


def test_a_narrow_head_alone_rounds_the_logits(make_model):
    model = make_model("llama")
    whole = draw(engine(model, precision="float32"), max_tokens=1)[0].distributions[0]
    narrow = draw(engine(model, precision="float32,head=bfloat16"), max_tokens=1)[0].distributions[0]
    both = draw(engine(model, precision="bfloat16"), max_tokens=1)[0].distributions[0]
    assert 1e-4 < float((narrow - whole).abs().max()) < float((both - whole).abs().max()) + 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bfloat16,heads=float32"}, "names 'heads'"),
        ({"precision": "bfloat16,cache=int8"}, "float32 or bfloat16"),
        ({"precision": "bfloat16,head=fp4"}, "fp4"),
        ({"precision": "bfloat16,head=float32", "compile": True}, "one precision"),
        ({"precision": "bfloat16,head=float32", "fused": False}, "own forward pass"),
    ],
)
def test_parts_of_a_precision_that_cannot_be_are_refused(make_model, options, message):
    with pytest.raises(ConfigError, match=message):
        engine(make_model("llama"), **options)


@pytest.mark.parametrize("support", [{}, {"top_k": 3}, {"top_p": 0.7}, {"temperature": 0.0}])
def test_the_sampling_mask_is_the_support_of_the_distribution(make_model, support):
    made, arguments = engine(make_model()), asked(**support)
    whole = made.generate(**arguments, return_distributions=True)
    for full, masked in zip(whole, made.generate(**arguments, return_support=True), strict=True):
        assert masked.token_ids == full.token_ids and masked.distributions is None
        named = [ids.tolist() for ids in masked.support_ids.split(masked.support_sizes.tolist())]
        assert named == [row.isfinite().nonzero().flatten().tolist() for row in full.distributions]

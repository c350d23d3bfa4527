"""vLLM in process against a plain forward pass of the model whose weights it was given."""

import copy

import pytest
import torch

from holdfast.core.divergences import exact_from_logits, top_k
from holdfast.errors import ConfigError, EngineError
from holdfast.objectives.parts.masks import TrmMax
from holdfast.objectives.parts.terms import Terms
from holdfast.rollout.engine import Engine, Sampling
from holdfast.types import Batch, TokenStats

pytest.importorskip("vllm")
from holdfast.rollout.outside import vllm as vllm_engine
from holdfast.rollout.outside.vllm import VllmEngine

EOS, VOCABULARY = 2, 68
# one of them longer than two blocks of the prefix cache (128 tokens each on a CPU)
PROMPTS = [[1, 10, 20, 30], [1, 40], [1, 10, 20, 30], [1, *range(4, 60), *range(4, 60), *range(4, 60), *range(4, 60)]]


@pytest.fixture(scope="module")
def engine(model_folder):
    engine = VllmEngine(model_folder, eos_token_id=EOS, context=512, cache_gib=0.25)
    yield engine
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.generate([[1]], Sampling(), seed=0, sequence_ids=[0])


@pytest.fixture(autouse=True)
def first_weights(engine, make_model):
    """Every test starts from make_model(0) as version 0."""
    engine.sync(make_model(0), 0)


def draw(engine, prompts=PROMPTS, seed=5, ids=None, distributions=False, top=0, **sampling):
    ids = range(len(prompts)) if ids is None else ids
    sampling = Sampling(**{"max_tokens": 12} | sampling)
    return engine.generate(
        prompts, sampling, seed=seed, sequence_ids=ids, return_distributions=distributions, return_top=top
    )


def distance(engine, model, whole_forward, **options):
    """Mean |log-probability of the engine - of the model| over a batch's sampled tokens."""
    found = []
    for prompt, completion in zip(PROMPTS, draw(engine, **options), strict=True):
        own = whole_forward(model, prompt, completion).log_softmax(-1)
        found.append((own.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0] - completion.logprobs).abs())
    return float(torch.cat(found).mean())


SUPPORTS = [
    {},
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.2},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
]


@pytest.mark.parametrize("support", SUPPORTS, ids=str)
def test_distributions_are_those_of_a_whole_forward_pass(engine, make_model, reported_exactly, support):
    drawn = draw(engine, distributions=True, top=20, **support)
    for prompt, completion in zip(PROMPTS, drawn, strict=True):
        reported_exactly(make_model(0), prompt, completion, Sampling(**support))


def test_the_likeliest_tokens_alone_are_the_same_ones(engine):
    whole, top = draw(engine, distributions=True, top=20), draw(engine, top=20)
    for full, few in zip(whole, top, strict=True):
        assert few.distributions is None
        assert few.token_ids == full.token_ids
        assert few.top_ids.shape == (len(few.token_ids), 20)
        assert torch.allclose(few.top_logprobs, full.top_logprobs, atol=1e-5)
        assert torch.allclose(few.logprobs, full.logprobs, atol=1e-5)
    assert draw(engine)[0].top_ids is None


def test_distributions_that_are_too_many_at_once_come_in_parts(engine, monkeypatch):
    together = draw(engine, distributions=True)
    monkeypatch.setattr(vllm_engine, "ENTRIES", 2 * 12 * VOCABULARY)
    sampled = []
    monkeypatch.setattr(
        engine, "_sample", lambda *parts: sampled.append(len(parts[1])) or type(engine)._sample(engine, *parts)
    )
    for part, whole in zip(draw(engine, distributions=True), together, strict=True):
        assert part.token_ids == whole.token_ids
        assert torch.allclose(part.distributions, whole.distributions, atol=1e-4)
    assert sampled == [2, 2]


def test_after_a_sync_the_engine_agrees_with_the_new_weights(engine, make_model, whole_forward):
    old, new = make_model(0), make_model(1)
    assert distance(engine, old, whole_forward) < 1e-5 < 0.5 < distance(engine, new, whole_forward)
    engine.sync(new, 7)
    assert engine.policy_version == 7
    assert {completion.policy_version for completion in draw(engine)} == {7}
    assert distance(engine, new, whole_forward) < 1e-5 < 0.5 < distance(engine, old, whole_forward)


def test_later_changes_of_the_trainer_do_not_reach_the_engine(engine, make_model):
    model = make_model(0)
    engine.sync(model, 1)
    before = draw(engine)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert [c.token_ids for c in draw(engine)] == [c.token_ids for c in before]


def test_the_same_ids_give_the_same_responses_in_any_batch(engine):
    together = draw(engine)
    assert [c.token_ids for c in together] == [c.token_ids for c in draw(engine)]
    backwards = draw(engine, prompts=PROMPTS[::-1], ids=range(len(PROMPTS))[::-1])[::-1]
    for row, prompt in enumerate(PROMPTS):
        alone = draw(engine, prompts=[prompt], ids=[row])[0]
        assert alone.token_ids == backwards[row].token_ids == together[row].token_ids
        assert torch.allclose(alone.logprobs, together[row].logprobs, atol=1e-4)
    # the same prompt under another id, and everything under another seed
    assert together[0].token_ids != together[2].token_ids
    assert [c.token_ids for c in together] != [c.token_ids for c in draw(engine, seed=6)]


def test_a_continued_response_does_not_repeat_its_random_numbers(engine, make_model):
    # Where all tokens are equally likely they are the random numbers: a continuation must not start with them again.
    engine.sync(make_model(0, sharpness=0.0), 1)
    first = draw(engine, prompts=[[1]])[0].token_ids
    rest = draw(engine, prompts=[[1, *first]])[0].token_ids
    assert rest[:4] != first[:4]


def test_more_prompts_than_are_read_in_one_step(engine):
    # a step reads 4096 tokens: prompts of 33 do not divide them, so one of them would be read in parts
    prompts = [[1, 4 + row % 60, *range(10, 41)] for row in range(240)]
    together = draw(engine, prompts=prompts, max_tokens=2)
    assert [c.token_ids for c in draw(engine, prompts=prompts[:3], max_tokens=2)] == [c.token_ids for c in together[:3]]


def test_tokens_are_drawn_as_often_as_their_probability_says(engine):
    completions = draw(engine, prompts=[[1, 10]] * 2000, max_tokens=1, top=20)
    expected = completions[0].top_logprobs[0].exp()
    drawn = torch.bincount(torch.tensor([c.token_ids[0] for c in completions]), minlength=VOCABULARY)
    seen = drawn[completions[0].top_ids[0]] / 2000
    # five standard deviations of a share of 2000 draws
    assert torch.all((seen - expected).abs() <= 5 * (expected * (1 - expected) / 2000).sqrt() + 1e-9)


def test_greedy_takes_the_likeliest_token_for_certain(engine, make_model, whole_forward):
    completions = draw(engine, temperature=0.0, distributions=True, top=3)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert whole_forward(make_model(0), prompt, completion).argmax(dim=-1).tolist() == list(completion.token_ids)
        assert not completion.logprobs.any()
        assert completion.distributions.exp().sum(dim=1).tolist() == [1.0] * len(completion.token_ids)
        assert completion.top_logprobs[:, 0].tolist() == [0.0] * len(completion.token_ids)
        assert bool(completion.top_logprobs[:, 1:].isneginf().all())


def test_a_response_ends_with_its_first_end_token(engine):
    completions = draw(engine, prompts=[[1, 40]] * 60, max_tokens=40)
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for completion in completions:
        assert (completion.finish_reason == "stop") == (completion.token_ids[-1] == EOS)
        assert EOS not in completion.token_ids[:-1]
        assert len(completion.token_ids) == 40 or completion.finish_reason == "stop"


def test_exact_kl_and_a_tv_interval_that_contains_the_exact_one(engine, make_model, whole_forward):
    trainer = copy.deepcopy(make_model(0)).bfloat16()
    kl = []
    for prompt, completion in zip(PROMPTS, draw(engine, distributions=True, top=20, max_tokens=30), strict=True):
        logits, rollout = whole_forward(trainer, prompt, completion), completion.distributions
        exact = exact_from_logits(logits, rollout)
        # the definition, in float64
        p, q = rollout.double(), logits.double().log_softmax(-1)
        assert torch.allclose(exact.kl.value.double(), (p.exp() * (p - q)).sum(-1), atol=1e-6)
        assert torch.allclose(exact.tv.value.double(), 0.5 * (p.exp() - q.exp()).abs().sum(-1), atol=1e-6)
        bounds = top_k(logits.log_softmax(-1).gather(1, completion.top_ids), completion.top_logprobs)
        assert torch.all(bounds.tv_lower.value <= exact.tv.value + 1e-6)
        assert torch.all(exact.tv.value <= bounds.tv_upper.value + 1e-6)
        assert torch.all(bounds.kl_lower.value <= exact.kl.value + 1e-6)
        assert torch.all(bounds.tv_upper.value < 1)
        kl.append(exact.kl.value)
    assert 1e-6 < float(torch.cat(kl).mean()) < 0.05


def test_top_k_detectors_never_reject_what_the_exact_one_keeps(engine, make_model, whole_forward):
    trainer = copy.deepcopy(make_model(0)).bfloat16()
    found = []
    for prompt, completion in zip(
        PROMPTS * 8, draw(engine, prompts=PROMPTS * 8, distributions=True, top=20), strict=True
    ):
        logits = whole_forward(trainer, prompt, completion)
        logprobs = logits.log_softmax(-1)
        sampled = logprobs.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        lower = top_k(logprobs.gather(1, completion.top_ids), completion.top_logprobs).kl_lower.value
        exact = exact_from_logits(logits, completion.distributions).kl.value
        found.append((sampled, completion.logprobs, exact, lower))
    logprobs, rollout, exact, lower = (
        torch.nn.utils.rnn.pad_sequence(c, batch_first=True) for c in zip(*found, strict=True)
    )
    lengths = torch.tensor([len(row[0]) for row in found])
    batch = Batch(
        advantages=torch.ones(len(found)),
        response_mask=torch.arange(int(lengths.max())) < lengths[:, None],
        rollout_logprobs=rollout,
    )
    terms = Terms.of(batch, TokenStats(logprobs=logprobs, kl_rollout=exact, kl_rollout_lower=lower))
    delta = float(exact.amax(dim=1).median())
    keeps = {name: TrmMax(delta, name).keep(terms, None).flatten() for name in ("kl_exact", "kl_lower", "k2", "k3")}
    assert 0 < int(keeps["kl_exact"].sum()) < len(found)
    assert bool((keeps["kl_lower"] | ~keeps["kl_exact"]).all())
    # a sampled detector gives no such promise: it is wrong in at least one direction on these rollouts
    assert bool((keeps["k2"] != keeps["kl_exact"]).any())
    assert bool((keeps["k3"] != keeps["kl_exact"]).any())


def test_the_trainer_keeps_its_random_numbers_and_threads(engine, make_model):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    draw(engine)
    engine.sync(make_model(0), 1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)


def test_a_resumed_engine_waits_for_its_weights(engine, make_model):
    assert isinstance(engine, Engine)
    engine.sync(make_model(1), 4)
    before, state = draw(engine), engine.state_dict()
    engine.sync(make_model(0), 9)
    engine.load_state_dict(state)
    with pytest.raises(EngineError, match=r"call sync\(model, version\) before generate"):
        draw(engine)
    engine.sync(make_model(1), engine.policy_version)
    assert [(c.token_ids, c.policy_version) for c in draw(engine)] == [(c.token_ids, 4) for c in before]


@pytest.mark.parametrize(
    ("prompts", "ids", "message"),
    [
        ([[1]], [], "1 prompts but 0 sequence ids"),
        ([[1], []], [0, 1], "a prompt is empty"),
        ([[1, 68]], [3], r"sequence 3: token 68 in the prompt, but the engine's model has 68: the prompts come from"),
        ([[1] * 501], [3], r"sequence 3: a prompt of 501 tokens and sampling.max_tokens = 12 do not fit .* 512"),
    ],
)
def test_requests_that_cannot_be_answered_are_refused(engine, prompts, ids, message):
    with pytest.raises(EngineError, match=message):
        draw(engine, prompts=prompts, ids=ids)
    assert len(draw(engine)) == 4


@pytest.mark.parametrize("temperature", [0.001, 3.0])
def test_temperatures_that_vllm_would_change_or_refuse_are_refused(engine, temperature):
    with pytest.raises(ConfigError, match=f"sampling.temperature = {temperature}: vLLM samples at 0.01 to 2, or 0"):
        draw(engine, temperature=temperature)


def test_no_prompts_no_responses(engine):
    assert draw(engine, prompts=[]) == []


def test_numerics_that_vllm_does_not_have_are_refused(model_folder):
    with pytest.raises(ConfigError, match=r"engine.precision = 'int8' with vLLM.*engine.options"):
        VllmEngine(model_folder, eos_token_id=EOS, precision="int8")

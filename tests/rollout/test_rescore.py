"""The first batch, scored again: honest engines pass, every way of reporting something else is named."""

import math
from dataclasses import replace

import pytest
import torch

from holdfast.errors import EngineError
from holdfast.rollout import rescore as module
from holdfast.rollout.embedded.embedded import EmbeddedEngine
from holdfast.rollout.engine import Sampling, sampling_logprobs
from holdfast.rollout.rescore import Agreement, check_engine, rescore

PROMPTS = [[2, 3, 4, 5], [2, 7], [2, 9, 8, 9], [2, 11]] * 4
SUPPORTS = [
    Sampling(max_tokens=24),
    Sampling(temperature=0.6, max_tokens=24),
    Sampling(top_p=0.8, max_tokens=24),
    Sampling(temperature=1.4, top_k=9, min_p=0.05, max_tokens=24),
]


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(initializer_range=0.25)


def draw(model, sampling=SUPPORTS[0], precision="float32"):
    engine = EmbeddedEngine(model, precision=precision, eos_token_id=1, pad_token_id=0)
    return engine.generate(PROMPTS, sampling, seed=3, sequence_ids=range(len(PROMPTS)))


def reported(completions, change):
    """The same responses with other log-probabilities."""
    return [replace(completion, logprobs=change(completion.logprobs)) for completion in completions]


@pytest.mark.parametrize("sampling", SUPPORTS, ids=str)
def test_an_honest_engine_agrees_to_rounding(model, sampling):
    found = check_engine(model, PROMPTS, draw(model, sampling), sampling)
    assert found.mean_abs <= found.max_abs < 1e-3
    assert found.k3 < 1e-6
    assert found.correlation > 0.999


@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int4_weight", "fp8_weight"])
@pytest.mark.parametrize("sampling", SUPPORTS, ids=str)
def test_numerics_are_not_taken_for_another_model(model, precision, sampling):
    found = check_engine(model, PROMPTS, draw(model, sampling, precision), sampling, precision=precision)
    assert 1e-4 < found.mean_abs < 0.5
    assert found.correlation > 0.8


def test_the_figures_are_their_definitions(model):
    completions = draw(model)[:2]
    # two tokens, off by +.5 and -.1 from what the model says: mean .3, max .5, k3 = (e^.5 - 1.5 + e^-.1 - .9) / 2
    changed = []
    for completion, gap in zip(completions, (0.5, -0.1), strict=True):
        short = replace(completion, token_ids=completion.token_ids[:1], logprobs=completion.logprobs[:1] - gap)
        changed.append(short)
    found = rescore(model, PROMPTS[:2], changed, SUPPORTS[0])
    assert found.tokens == 2
    assert found.mean_abs == pytest.approx(0.3, abs=1e-4)
    assert found.max_abs == pytest.approx(0.5, abs=1e-4)
    assert found.k3 == pytest.approx((math.exp(0.5) - 1.5 + math.exp(-0.1) - 0.9) / 2, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.4])
def test_tokens_off_the_trainers_support_are_compared_without_truncation(model, temperature):
    """The engine drew from everything and says so; the trainer, told top-k 1, still scores what lies outside."""
    completions = draw(model, Sampling(temperature=temperature, max_tokens=24))
    narrow = Sampling(temperature=temperature, top_k=1, max_tokens=24)
    off, total, largest = 0, 0, 0.0
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        found = rescore(model, [prompt], [completion], narrow)
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *completion.token_ids]])).logits[0, len(prompt) - 1 : -1]
        other = logits.argmax(dim=1) != torch.tensor(completion.token_ids)
        # A token on the support of one is certain there: its gap is -log p, that of all others rounding.
        gaps = torch.where(other, 0.0, -completion.logprobs)
        assert found.mean_abs == pytest.approx(float(gaps.mean()), abs=1e-4)
        off, total, largest = off + int(other.sum()), total + len(other), max(largest, float(gaps.max()))
    assert 20 < off < total
    assert largest > 0.1


def test_only_the_first_tokens_of_the_first_sequences_are_scored(model):
    completions = draw(model)
    found = rescore(model, PROMPTS, completions, SUPPORTS[0], sequences=3, tokens=5)
    assert found.tokens == sum(min(5, len(completion.token_ids)) for completion in completions[:3])


def test_another_model_is_caught_with_figures(model, make_model):
    other = make_model(seed=1, initializer_range=0.25)
    with pytest.raises(EngineError, match=r"mean \|Δ log p\| \d.*correlation.*over \d+ tokens.*other weights or anoth"):
        check_engine(model, PROMPTS, draw(other), SUPPORTS[0])


def test_another_vocabulary_is_caught(model, make_model):
    completions = draw(model)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = [replace(c, token_ids=tuple(order[token] for token in c.token_ids)) for c in completions]
    with pytest.raises(EngineError, match="another vocabulary"):
        check_engine(model, PROMPTS, shuffled, SUPPORTS[0])
    edge = [replace(completions[0], token_ids=(30, *completions[0].token_ids[1:]))]
    with pytest.raises(EngineError, match=r"sampled token 30, the trainer's model has 30"):
        check_engine(model, PROMPTS[:1], edge, SUPPORTS[0])
    larger = draw(make_model(vocab_size=60, initializer_range=0.25))
    assert max(max(completion.token_ids) for completion in larger) >= 30
    with pytest.raises(EngineError, match=r"sampled token \d\d, the trainer's model has 30: they do not run the same"):
        check_engine(model, PROMPTS, larger, SUPPORTS[0])


def test_a_model_that_differs_little_everywhere_is_unrelated(make_model):
    # nearly uniform policies: the mean stays small, only the correlation tells that the two have nothing in common
    one, other = (make_model(seed=seed, initializer_range=0.03) for seed in (0, 1))
    sampling = Sampling(max_tokens=24)
    assert rescore(one, PROMPTS, draw(other), sampling).mean_abs < 0.3
    with pytest.raises(EngineError, match=r"correlation -?0\.[0-4]"):
        check_engine(one, PROMPTS, draw(other), sampling, precision="int8")


def test_what_may_be_numerics_depends_on_the_numerics(model):
    completions = draw(model, precision="fp8_weight")
    assert 0.02 < rescore(model, PROMPTS, completions, SUPPORTS[0]).mean_abs < 0.5
    with pytest.raises(EngineError, match=r"up to 0.02 may be the numerics of an engine in float32.*set engine.prec"):
        check_engine(model, PROMPTS, completions, SUPPORTS[0], precision="float32")
    assert check_engine(model, PROMPTS, completions, SUPPORTS[0]).mean_abs > 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: torch.cat([p[:1], p[:-1]]), "Each log-probability belongs to the token before it"),
        (lambda p: torch.cat([p[1:], p[-1:]]), "Each log-probability belongs to the token after it"),
        (torch.zeros_like, "All log-probabilities are 0: the engine gives none"),
    ],
)
@pytest.mark.parametrize("sampling", SUPPORTS, ids=str)
def test_wrong_bookkeeping_is_named(model, sampling, change, message):
    with pytest.raises(EngineError, match=message):
        check_engine(model, PROMPTS, reported(draw(model, sampling), change), sampling)


def whole_forward(model, prompt, completion):
    with torch.no_grad():
        return model(torch.tensor([[*prompt, *completion.token_ids]])).logits[0, len(prompt) - 1 : -1]


@pytest.mark.parametrize("sampling", SUPPORTS[1:], ids=str)
def test_unprocessed_numbers_are_named_even_where_they_are_close(model, sampling):
    raw = []
    for prompt, completion in zip(PROMPTS, draw(model, sampling), strict=True):
        logprobs = whole_forward(model, prompt, completion).log_softmax(-1)
        tokens = torch.tensor(completion.token_ids)[:, None]
        raw.append(replace(completion, logprobs=logprobs.gather(1, tokens)[:, 0]))
    with pytest.raises(EngineError, match="before temperature and truncation"):
        check_engine(model, PROMPTS, raw, sampling)
    if sampling.top_p == 0.8:
        assert rescore(model, PROMPTS, raw, sampling).mean_abs < 0.3
        with pytest.raises(EngineError, match="before temperature and truncation"):
            check_engine(model, PROMPTS, raw, sampling, precision="int4_weight")


@pytest.mark.parametrize("sampling", SUPPORTS, ids=str)
def test_the_likeliest_tokens_instead_of_the_sampled_ones_are_named(model, sampling):
    changed = []
    for prompt, completion in zip(PROMPTS, draw(model, sampling), strict=True):
        best = sampling_logprobs(whole_forward(model, prompt, completion), sampling).amax(-1)
        changed.append(replace(completion, logprobs=best))
    assert rescore(model, PROMPTS, changed, sampling).suspects["likeliest"] < 1e-3
    if sampling.temperature >= 1:  # colder, most tokens are the likeliest, and the difference may be numerics
        with pytest.raises(EngineError, match="those of the likeliest tokens"):
            check_engine(model, PROMPTS, changed, sampling, precision="float32")


@pytest.mark.parametrize(
    ("mean", "explained", "name"), [(0.4, 0.09, "earlier"), (0.4, 0.11, None), (0.008, 0.0, None), (0.4, None, None)]
)
def test_a_wrong_reading_is_named_where_it_leaves_a_quarter_of_more_than_noise(mean, explained, name):
    suspects = {} if explained is None else {"earlier": explained, "raw": 0.3}
    found = Agreement(tokens=9, mean_abs=mean, max_abs=1.0, k3=0.1, correlation=0.9, suspects=suspects)
    assert found.reading(["earlier", "raw"]) == name


def judged(monkeypatch, precision, mean, **figures):
    """check_engine of an engine that was found to differ so much."""
    found = Agreement(**{"tokens": 64, "mean_abs": mean, "max_abs": 9.0, "k3": 0.1, "correlation": 0.9} | figures)
    monkeypatch.setattr(module, "rescore", lambda *_: found)
    assert check_engine(None, [], [], SUPPORTS[0], precision=precision) is found


@pytest.mark.parametrize(
    ("precision", "limit"), [("float32", 0.02), ("bfloat16", 0.15), ("float16", 0.15), ("int8", 0.5), (None, 0.5)]
)
def test_each_numerics_has_its_limit(monkeypatch, precision, limit):
    judged(monkeypatch, precision, limit)
    with pytest.raises(EngineError, match=f"up to {limit:g} may be"):
        judged(monkeypatch, precision, limit + 1e-6)


@pytest.mark.parametrize(
    "figures", [{"tokens": 63, "correlation": 0.1}, {"mean": 0.05, "correlation": 0.1}, {"correlation": 0.5}]
)
def test_few_tokens_small_differences_and_half_a_relation_prove_nothing(monkeypatch, figures):
    judged(monkeypatch, "int8", **{"mean": 0.4} | figures)
    with pytest.raises(EngineError, match="other weights or another vocabulary"):
        judged(monkeypatch, "int8", **{"mean": 0.4} | figures | {"tokens": 64, "mean": 0.051, "correlation": 0.49})


@pytest.mark.parametrize("suspect", ["earlier", "later", "raw", "zero"])
def test_a_quarter_of_the_difference_under_a_wrong_reading_is_proof(monkeypatch, suspect):
    with pytest.raises(EngineError, match=r"the mean would be 0\.1\)"):
        judged(monkeypatch, "int8", 0.4, suspects={suspect: 0.1})
    judged(monkeypatch, "int8", 0.4, suspects={suspect: 0.101, "likeliest": 0.0})


def test_greedy_responses_say_nothing_and_pass(model):
    sampling = Sampling(temperature=0.0, max_tokens=8)
    found = check_engine(model, PROMPTS, draw(model, sampling), sampling)
    assert found.mean_abs == 0
    assert not found.suspects, "a token that the trainer ranks second would make zeros look like no answer"


def test_figures_stay_finite_where_there_is_little_to_compare(model):
    """Constant reports have no correlation, huge gaps no infinite k3, single tokens no neighbour they could be of."""
    completions = draw(model)
    constant = rescore(
        model, PROMPTS, reported(completions, lambda logprobs: torch.full_like(logprobs, -2.0)), SUPPORTS[0]
    )
    assert constant.correlation == 0
    # k3 of a gap that counts as 20 nats at most: e^20 - 20 - 1
    far = rescore(model, PROMPTS, reported(completions, lambda logprobs: logprobs - 200), SUPPORTS[0])
    assert far.k3 == pytest.approx(math.exp(20) - 21, rel=1e-5)
    single = [replace(c, token_ids=c.token_ids[:1], logprobs=c.logprobs[:1] - 0.1) for c in completions]
    assert rescore(model, PROMPTS[:1], single[:1], SUPPORTS[0]).correlation == 0
    found = check_engine(model, PROMPTS, single, SUPPORTS[0], precision="bfloat16")
    assert found.suspects["earlier"] == found.suspects["later"] == math.inf

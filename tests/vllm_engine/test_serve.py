"""A real `vllm serve` on this machine, over HTTP."""

import pytest
import torch

from holdfast.errors import EngineError
from holdfast.rollout.engine import Sampling
from holdfast.rollout.models import character_tokenizer
from holdfast.rollout.outside.server import ServerEngine

pytest.importorskip("vllm")

EOS, VOCABULARY = 2, 68
PROMPTS = [[1, 10, 20, 30], [1, 40], [1, *range(4, 60), *range(4, 60), *range(4, 60), *range(4, 60)]]


@pytest.fixture(scope="module")
def engine(process, make_model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    engine = ServerEngine(process.client, folder=folder, eos_token_id=EOS, tokenizer=tokenizer)
    engine.sync(make_model(0), 0)
    return engine


def draw(engine, prompts=PROMPTS, seed=5, distributions=False, top=0, **sampling):
    sampling = Sampling(**{"max_tokens": 12} | sampling)
    return engine.generate(
        prompts,
        sampling,
        seed=seed,
        sequence_ids=range(len(prompts)),
        return_distributions=distributions,
        return_top=top,
    )


def distance(completions, model, whole_forward):
    """Mean |log-probability of the engine - of the model| over a batch's sampled tokens."""
    found = []
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        own = whole_forward(model, prompt, completion).log_softmax(-1)
        found.append((own.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0] - completion.logprobs).abs())
    return float(torch.cat(found).mean())


@pytest.mark.parametrize("support", [{}, {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.05}], ids=str)
def test_distributions_are_those_of_a_whole_forward_pass(engine, make_model, reported_exactly, support):
    drawn = draw(engine, distributions=True, top=20, **support)
    for prompt, completion in zip(PROMPTS, drawn, strict=True):
        reported_exactly(make_model(0), prompt, completion, Sampling(**support))


def test_the_likeliest_tokens_are_the_same_ones_where_others_were_sampled(engine):
    """The server adds a sampled token to the one that it was asked for."""
    whole, few = draw(engine, distributions=True), draw(engine, top=1)
    for full, top in zip(whole, few, strict=True):
        assert top.token_ids == full.token_ids and top.distributions is None
        assert torch.equal(top.top_ids[:, 0], full.distributions.argmax(dim=1))
        assert torch.allclose(top.top_logprobs[:, 0], full.distributions.amax(dim=1), atol=1e-5)
        assert torch.allclose(top.logprobs, full.logprobs, atol=1e-5)
    sampled = torch.cat([torch.tensor(completion.token_ids) for completion in few])
    others = sampled != torch.cat([completion.top_ids[:, 0] for completion in few])
    assert 0 < int(others.sum()) < len(others)


def test_the_same_seed_gives_the_same_responses(engine):
    first, again, other = draw(engine), draw(engine), draw(engine, seed=6)
    assert [c.token_ids for c in first] == [c.token_ids for c in again] != [c.token_ids for c in other]


def test_responses_end_with_the_end_token_or_at_the_limit(engine):
    completions = draw(engine, prompts=[[1, 40]] * 30, max_tokens=40)
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for completion in completions:
        assert (completion.finish_reason == "stop") == (completion.token_ids[-1] == EOS)
        assert len(completion.token_ids) == 40 or completion.finish_reason == "stop"


def test_after_a_reload_the_server_agrees_with_the_new_weights(engine, make_model, whole_forward):
    old, new = make_model(0), make_model(1)
    engine.sync(old, 1)
    before = draw(engine)
    assert distance(before, old, whole_forward) < 1e-5 < 0.5 < distance(before, new, whole_forward)
    engine.sync(new, 2)
    after = draw(engine)
    assert {completion.policy_version for completion in after} == {2}
    assert distance(after, new, whole_forward) < 1e-5 < 0.5 < distance(after, old, whole_forward)


def test_what_the_server_refuses_is_said_in_its_words(engine):
    with pytest.raises(EngineError, match=r"refused the request with status 400: .*(?i:vocab|token)"):
        draw(engine, prompts=[[1, 99999]])
    with pytest.raises(EngineError, match=r"a prompt of 501 tokens and sampling.max_tokens = 12 do not fit .* of 512"):
        draw(engine, prompts=[[1] * 501])


def test_another_tokenizer_is_found_before_the_first_prompt(process, tmp_path):
    with pytest.raises(EngineError, match="with another tokenizer than the trainer's"):
        ServerEngine(process.client, folder=tmp_path, eos_token_id=EOS, tokenizer=character_tokenizer("0123456789"))


def test_a_server_that_was_started_again_has_lost_the_weights(engine, process, make_model, model_folder):
    engine.sync(make_model(1), 3)
    process.start(model_folder, patience=600.0)
    with pytest.raises(EngineError, match="not those of the last sync"):
        draw(engine)
    engine.sync(make_model(1), 3)
    assert draw(engine)[0].policy_version == 3

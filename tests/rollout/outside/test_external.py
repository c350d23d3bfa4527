"""What is asked of engines outside the trainer, and what of their answers can be trained on."""

import copy
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from holdfast.errors import ConfigError, EngineError
from holdfast.rollout.engine import Completion, Sampling
from holdfast.rollout.models import character_tokenizer, tiny_model
from holdfast.rollout.outside.external import check_requests, checked, request_seed, split_rows, write_model

PLAIN = Sampling(max_tokens=8)
INFINITE = float("inf")


def test_the_numbers_of_a_seed_are_kept_apart():
    assert request_seed(1, 12, 3) != request_seed(11, 2, 3) != request_seed(1, 1, 23)


def test_a_written_model_is_the_model_and_stays_as_it_was(tmp_path):
    """Tied weights twice, transposed ones in order, under the class that it has here."""
    tokenizer = character_tokenizer("0123456789")
    model = tiny_model(tokenizer, hidden=16, layers=1, heads=2)
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data = weight.data.T.contiguous().T
    before = copy.deepcopy(model.config.to_dict())
    write_model(model, tokenizer, tmp_path / "a" / "b")
    weights = load_file(tmp_path / "a" / "b" / "model.safetensors")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    assert weights.keys() == model.state_dict().keys()
    assert AutoConfig.from_pretrained(tmp_path / "a" / "b").architectures == [type(model).__name__]
    assert model.config.to_dict() == before
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "b")
    # Every bit of the weights; a product of a transposed matrix may end in another one.
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("temperature", [0.0, 0.01, 1.0, 2.0])
def test_requests_that_can_be_answered_pass(temperature):
    """The longest that fits, with the last token of the vocabulary."""
    sampling = Sampling(temperature=temperature, max_tokens=8)
    check_requests([[0, 9], [1] * 8], [0, 1], sampling, context=16, vocabulary=10)
    check_requests([[0, 9], [1] * 80], [0, 1], sampling, context=None)


@pytest.mark.parametrize("temperature", [0.005, 2.5])
def test_temperatures_that_vllm_changes_are_refused(temperature):
    with pytest.raises(ConfigError, match=rf"sampling.temperature = {temperature}: vLLM samples at 0.01 to 2"):
        check_requests([[1]], [0], Sampling(temperature=temperature, max_tokens=8), context=None)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([[1], [2]], "2 prompts but 1 sequence ids"),
        ([[]], "a prompt is empty"),
        ([[1, 10]], "sequence 7: token 10 in the prompt, but the engine's model has 10"),
        ([[-1, 1]], "sequence 7: token 1 in the prompt"),
        ([[1] * 9], "sequence 7: a prompt of 9 tokens and sampling.max_tokens = 8 do not fit .* context of 16"),
    ],
)
def test_requests_that_cannot_be_answered_are_refused(prompts, words):
    with pytest.raises(EngineError, match=words):
        check_requests(prompts, [7], PLAIN, context=16, vocabulary=10)


def response(logprobs, tokens=(3, 4), **fields):
    """Past the check of lengths that only tests have."""
    completion = Completion(tokens, torch.zeros(len(tokens)), "stop", 0, **fields)
    object.__setattr__(completion, "logprobs", torch.tensor(logprobs))
    return completion


@pytest.mark.parametrize(
    ("logprobs", "tokens", "words"),
    [
        ([], (), "x: the response is empty"),
        ([-1.0], (3, 4), "x: 1 log-probabilities for 2 tokens"),
        ([-1.0, 0.01], (3, 4), r"x: log-probability 0\.0\d+ at token 1 of 2"),
        ([math.nan, -1.0], (3, 4), "x: log-probability nan at token 0 of 2"),
        ([-1.0, -INFINITE], (3, 4), "x: log-probability -inf at token 1 of 2"),
    ],
)
def test_numbers_that_cannot_be_trained_on_are_refused(logprobs, tokens, words):
    with pytest.raises(EngineError, match=words):
        checked(response(logprobs, tokens), PLAIN, "x")


def test_rounding_above_zero_is_let_through():
    completion = response([-1.0, 5e-4])
    assert checked(completion, PLAIN, "x") is completion


def test_a_greedy_response_is_certain_in_every_field():
    """Tokens 3 and 4; the second was not the engine's likeliest, which is no matter: it was taken."""
    completion = response(
        [-0.7, -0.9],
        distributions=torch.full((2, 6), 1 / 6).log(),
        top_ids=torch.tensor([[3, 5], [5, 4]]),
        top_logprobs=torch.tensor([[-0.7, -1.0], [-0.5, -0.9]]),
    )
    greedy = checked(completion, Sampling(temperature=0.0, max_tokens=8), "x")
    assert greedy.logprobs.tolist() == [0.0, 0.0]
    assert greedy.distributions.exp().tolist() == [[0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0]]
    assert greedy.top_logprobs.exp().tolist() == [[1, 0], [0, 1]]


def test_reported_tokens_become_a_distribution_and_the_likeliest_in_order():
    """Position 0 sampled token 2, which is also among the four reported ones; the likeliest come unsorted."""
    ids = torch.tensor([[2, 0, 1, 2, 3], [3, 1, 0, 3, 2]])
    logprobs = torch.tensor([[-2.0, -1.5, -0.9, -2.0, -3.0], [-0.1, -4.0, -5.0, -0.1, -6.0]])
    fields = split_rows(ids, logprobs, top=2, vocabulary=4)
    assert fields["logprobs"].tolist() == logprobs[:, 0].tolist()
    expected = torch.tensor([[-1.5, -0.9, -2.0, -3.0], [-5.0, -4.0, -6.0, -0.1]])
    assert torch.equal(fields["distributions"], expected)
    assert fields["top_ids"].tolist() == [[1, 0], [3, 1]]
    assert torch.equal(fields["top_logprobs"], torch.tensor([[-0.9, -1.5], [-0.1, -4.0]]))
    few = split_rows(ids, logprobs, top=9, vocabulary=None)
    assert few["top_ids"].shape == few["top_logprobs"].shape == (2, 4) and "distributions" not in few
    assert split_rows(ids, logprobs, top=0, vocabulary=None).keys() == {"logprobs"}

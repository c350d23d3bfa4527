"""Scores of a small model against one plain float64 pass per sequence and a support worked out by sorting."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

import dumps
from holdfast.audit import rescore
from holdfast.audit.columns import chunk_of
from holdfast.audit.loaders.loader import ROLLOUT_ONLY
from holdfast.audit.reading import Reading
from holdfast.audit.rescore import Scorer
from holdfast.audit.source import find_files, read_files
from holdfast.errors import ConfigError, DataError
from holdfast.rollout.models import character_tokenizer, tiny_model
from holdfast.types import Rollout

VOCABULARY = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model with peaked predictions, so that temperature and truncation matter."""
    tokenizer = character_tokenizer("".join(chr(48 + i) for i in range(VOCABULARY - 4)))
    model = tiny_model(tokenizer, hidden=32, layers=2, heads=2)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(12)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(folder):
    return Scorer.load(folder)


def rollouts(**fields):
    made = dumps.sample_rollouts(3, count=7)
    small = [
        dataclasses.replace(
            r,
            prompt_ids=tuple(t % VOCABULARY for t in r.prompt_ids),
            response_ids=tuple(t % VOCABULARY for t in r.response_ids),
            trainer_logprobs=None,
        )
        for r in made
    ]
    return [dataclasses.replace(r, **fields) for r in small]


def oracle(folder, rollout, temperature=1.0, top_p=1.0):
    """log q of each own token, in float64 and plain Python, one sequence alone; NaN for other tokens."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*rollout.prompt_ids, *rollout.response_ids]])).logits[0]
    out = []
    for j, token in enumerate(rollout.response_ids):
        row = [z / temperature for z in logits[len(rollout.prompt_ids) - 1 + j].tolist()]
        largest = max(row)
        weights = [math.exp(z - largest) for z in row]
        total = sum(weights)
        kept, mass = set(), 0.0
        for index in sorted(range(len(row)), key=lambda i: -weights[i]):
            if mass < top_p * total:
                kept.add(index)
            mass += weights[index]
        norm = sum(weights[i] for i in kept) if token in kept else total
        out.append(math.log(weights[token] / norm) if rollout.response_mask[j] else math.nan)
    return out


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.6}, {"temperature": 1.3, "top_p": 0.8}])
@pytest.mark.parametrize("batch_tokens", [1, 120, 8192])
def test_scores_are_those_of_one_sequence_alone(folder, scorer, monkeypatch, sampling, batch_tokens):
    monkeypatch.setattr(rescore, "BATCH_TOKENS", batch_tokens)
    monkeypatch.setattr(rescore, "LOGIT_ROWS", 7)
    logged = rollouts(**sampling)
    (chunk,) = scorer.fill([chunk_of(logged)], Reading())
    for index, rollout in enumerate(logged):
        expected = oracle(folder, rollout, **sampling)
        got = chunk.tokens["trainer_logprobs"][chunk.offsets[index] : chunk.offsets[index + 1]]
        np.testing.assert_allclose(got, expected, atol=2e-5)
        np.testing.assert_array_equal(np.float32(chunk.rollout(index).trainer_logprobs), got)
        np.testing.assert_array_equal(np.float32(chunk.keep(index)().trainer_logprobs), got)
    assert chunk.present["trainer_logprobs"].all()


def test_what_the_log_has_is_kept(scorer):
    logged = rollouts()
    known = dataclasses.replace(logged[2], trainer_logprobs=(-1.0,) * len(logged[2].response_ids))
    (chunk,) = scorer.fill([chunk_of([logged[0], known])], Reading())
    assert set(chunk.rollout(1).trainer_logprobs) == {-1.0}
    assert -1.0 not in chunk.rollout(0).trainer_logprobs
    complete = chunk_of([known])
    assert next(scorer.fill([complete], Reading())) is complete


def test_a_head_with_a_soft_cap_is_not_bypassed(folder, scorer, tmp_path):
    """Gemma caps its logits after the head: scores must come from the model's own logits."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        final_logit_softcapping=2.0,
    )
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(40)
    model.save_pretrained(tmp_path)
    capped = Scorer.load(tmp_path)
    assert scorer.head_is_linear
    assert not capped.head_is_linear
    (rollout, *_) = rollouts()
    (chunk,) = capped.fill([chunk_of([rollout])], Reading())
    np.testing.assert_allclose(chunk.tokens["trainer_logprobs"], oracle(tmp_path, rollout), atol=2e-5)


def test_an_unknown_temperature_and_the_weights_are_noted(scorer):
    reading = Reading()
    list(scorer.fill([chunk_of(rollouts())], reading))
    assert any("temperature 1" in note for note in reading.notes)
    assert any("only if these are the weights" in note for note in reading.notes)
    reading = Reading()
    list(scorer.fill([chunk_of(rollouts(temperature=1.0))], reading))
    assert not any("temperature 1" in note for note in reading.notes)


def test_what_is_scored_is_no_longer_called_unknown(folder, tmp_path):
    dumps.open_instruct(tmp_path, rollouts())
    reading = Reading()
    chunks = [chunk for _, chunk in read_files(find_files(tmp_path), reading)]
    assert ROLLOUT_ONLY in reading.notes
    list(Scorer.load(folder).fill(chunks, reading))
    assert ROLLOUT_ONLY not in reading.notes


@pytest.mark.parametrize(
    ("rollout", "says"),
    [
        (Rollout((1,), (2, VOCABULARY)), f"token id {VOCABULARY} is outside the vocabulary .*0 to {VOCABULARY - 1}"),
        (Rollout((), (2, 3)), "no prompt token ids"),
    ],
)
def test_what_cannot_be_scored_says_why(scorer, rollout, says):
    with pytest.raises(DataError, match=says):
        list(scorer.fill([chunk_of([rollout])], Reading()))


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        Scorer.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    with pytest.raises(ConfigError, match="could not be loaded"):
        Scorer.load(tmp_path)


def test_an_empty_response_needs_no_pass(scorer):
    (chunk,) = scorer.fill([chunk_of([Rollout((1, 2), ())])], Reading())
    assert chunk.rollout(0).trainer_logprobs == ()

"""Scores of a small model against one plain float64 pass per sequence and a support worked out by sorting."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch

import dumps
from holdfast.audit.read import rescore
from holdfast.audit.read.columns import Likeliest, chunk_of
from holdfast.audit.read.loaders.loader import ROLLOUT_ONLY
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.rescore import Scorer
from holdfast.audit.read.source import find_files, read_files
from holdfast.commands.audit import audit_path
from holdfast.errors import ConfigError, DataError
from holdfast.rollout.engine import Sampling
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
    read = chunk_of([logged[0], known])
    (chunk,) = scorer.fill([read], Reading())
    assert np.isnan(read.tokens["trainer_logprobs"][: len(logged[0].response_ids)]).all(), "what was read stays"
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
    logged = rollouts()[:2]
    (chunk,) = capped.fill([chunk_of(logged)], Reading())
    expected = [value for rollout in logged for value in oracle(tmp_path, rollout)]
    np.testing.assert_allclose(chunk.tokens["trainer_logprobs"], expected, atol=2e-5)


def test_an_unknown_temperature_and_the_weights_are_noted(scorer):
    reading = Reading()
    list(scorer.fill([chunk_of(rollouts())], reading))
    assert any("temperature 1" in note for note in reading.notes)
    assert any("in float32, computed" in note and "only if these are the weights" in note for note in reading.notes)
    reading = Reading()
    list(scorer.fill([chunk_of([*rollouts()[:1], *rollouts(temperature=1.0)[1:]])], reading))
    assert any("temperature 1" in note for note in reading.notes)
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


def answers_of(engine, path, prompts, top=4):
    """Completions of `engine`, token by token in float64, as vLLM's server writes them with K = `top`; and p [T, V]."""
    generator, distributions = torch.Generator().manual_seed(0), []
    with path.open("w") as file:
        for prompt in prompts:
            ids, tables, rows = list(prompt), [], []
            for _ in range(9):
                with torch.no_grad():
                    rows.append(engine(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(dim=0))
                ids.append(int(torch.multinomial(rows[-1].exp(), 1, generator=generator)))
                named = {ids[-1], *rows[-1].topk(top).indices.tolist()}
                tables.append({f"token_id:{token}": float(rows[-1][token]) for token in named})
            response = ids[len(prompt) :]
            names = [f"token_id:{token}" for token in response]
            sampled = [table[name] for name, table in zip(names, tables, strict=True)]
            logprobs = {"tokens": names, "token_logprobs": sampled, "top_logprobs": tables}
            choice = {"logprobs": logprobs, "prompt_token_ids": list(prompt)}
            file.write(json.dumps({"choices": [choice]}) + "\n")
            distributions.append(torch.stack(rows))
    return distributions


def test_bounds_from_a_server_s_log_contain_the_divergences_over_the_whole_vocabulary(folder, tmp_path, monkeypatch):
    """KL and TV by their definitions in float64; the bounds by the merged outcomes, written out."""
    monkeypatch.setattr(rescore, "LOGIT_ROWS", 4)
    from transformers import AutoModelForCausalLM

    trainer, engine = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval() for _ in range(2))
    with torch.no_grad():
        for parameter in engine.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    whole = answers_of(engine, tmp_path / "answers.jsonl", [(1, 5, 6), (1, 7)])
    audit = audit_path(tmp_path / "answers.jsonl", reading := Reading(), scorers=[Scorer.load(folder)])
    assert audit.facts.sequences == 2 and reading.likeliest
    chunks = [chunk for _, chunk in read_files(find_files(tmp_path), reading)]
    (chunk,) = Scorer.load(folder).fill(chunks, reading)
    assert chunk.present["kl_lower"].all() and chunk.likeliest == ()
    for index, p in enumerate(whole):
        rollout = chunk.rollout(index)
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.response_ids]])
        with torch.no_grad():
            q = trainer(input_ids=ids).logits[0, len(rollout.prompt_ids) - 1 : -1].log_softmax(dim=1)
        likeliest = p.topk(4, dim=1)
        (p_top, q_top) = (likeliest.values.exp(), q.gather(1, likeliest.indices).exp())
        p_tail, q_tail = 1 - p_top.sum(dim=1), 1 - q_top.sum(dim=1)
        gap = (p_top - q_top).abs().sum(dim=1)
        expected = {
            "kl_lower": (p_top * (p_top / q_top).log()).sum(dim=1) + p_tail * (p_tail / q_tail).log(),
            "tv_lower": 0.5 * (gap + (p_tail - q_tail).abs()),
            "tv_upper": 0.5 * (gap + p_tail + q_tail),
        }
        for name, values in expected.items():
            np.testing.assert_allclose(getattr(rollout, name), values, atol=1e-5)
            np.testing.assert_array_equal(np.float32(getattr(chunk.keep(index)(), name)), getattr(rollout, name))
        kl, tv = (p.exp() * (p - q)).sum(dim=1), 0.5 * (p.exp() - q.exp()).abs().sum(dim=1)
        assert kl.min() > 1e-3
        assert torch.all(torch.tensor(rollout.kl_lower) <= kl + 1e-5)
        assert torch.all(torch.tensor(rollout.tv_lower) <= tv + 1e-5)
        assert torch.all(tv <= torch.tensor(rollout.tv_upper) + 1e-5)


def test_bounds_are_left_out_where_the_log_truncates_and_nan_where_another_wrote(scorer):
    likeliest = Likeliest(np.array([[3, 4]] * 2, np.int32), np.full((2, 2), -1.0, np.float32))
    logged = Rollout((1, 5), (3, 4), response_mask=(False, True))
    cut = dataclasses.replace(logged, top_p=0.9)
    (chunk,) = scorer.fill([dataclasses.replace(chunk_of([logged, cut]), likeliest=(likeliest, likeliest))], Reading())
    assert chunk.present["kl_lower"].tolist() == [True, False]
    assert chunk.present["trainer_logprobs"].tolist() == [True, True]
    assert chunk.rollout(1).kl_lower is None
    for name in ("kl_lower", "tv_lower", "tv_upper"):
        assert np.isfinite(chunk.tokens[name]).tolist() == [False, True, False, False]


def test_a_reported_token_outside_the_vocabulary_is_refused(scorer):
    likeliest = Likeliest(np.array([[3, VOCABULARY]], np.int32), np.full((1, 2), -1.0, np.float32))
    chunk = dataclasses.replace(chunk_of([Rollout((1,), (3,))]), likeliest=(likeliest,))
    with pytest.raises(DataError, match=f"token id {VOCABULARY} is outside the vocabulary"):
        list(scorer.fill([chunk], Reading()))


@pytest.mark.parametrize(
    ("rollout", "says"),
    [
        (Rollout((1,), (2, VOCABULARY)), f"token id {VOCABULARY} is outside the vocabulary .*0 to {VOCABULARY - 1}"),
        (Rollout((VOCABULARY,), (2, 3)), f"token id {VOCABULARY} is outside"),
        (Rollout((1, -1), (2, 3)), "token id -1 is outside"),
        (Rollout((), (2, 3)), "no prompt token ids"),
    ],
)
def test_what_cannot_be_scored_says_why(scorer, rollout, says):
    with pytest.raises(DataError, match=says):
        list(scorer.fill([chunk_of([rollout])], Reading()))


def test_a_folder_without_a_model_says_so(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        Scorer.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    with pytest.raises(ConfigError, match="could not be loaded"):
        Scorer.load(tmp_path)
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(ConfigError, match=r"could not be loaded .* no file named"):
        Scorer.load(tmp_path)


def test_a_model_that_is_not_whole_scores_nothing(folder, tmp_path):
    """Weights that are missing would be random numbers, and so would every score."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path / "cut")
    path = tmp_path / "cut" / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"--model .* lacks weights"):
        Scorer.load(tmp_path / "cut")


def test_it_computes_in_the_numerics_that_are_asked_for(folder, scorer):
    assert (scorer.model.dtype, scorer.model.training) == (torch.float32, False)
    assert Scorer.load(folder, torch.bfloat16).model.dtype == torch.bfloat16


def test_a_model_that_names_no_head_has_none_that_could_be_used_alone(scorer, monkeypatch):
    monkeypatch.setattr(scorer.model, "get_output_embeddings", lambda: None)
    assert not rescore._head_is_linear(scorer.model)


def test_what_the_log_says_of_sampling_is_taken_over_zeros_included():
    logged = Rollout((1,), (2,), temperature=0.0, top_k=-1, min_p=0.1)
    assert rescore._sampling(logged) == Sampling(temperature=0.0, top_k=0, min_p=0.1)


@pytest.mark.parametrize(("tokens", "batches"), [(14, [[1, 3, 0], [2]]), (16, [[1, 3, 0, 2]])])
def test_batches_hold_similar_lengths_up_to_their_size_with_padding(monkeypatch, tokens, batches):
    """Sequences of 4, 2, 4 and 3 tokens: three are 3·4 = 12 with padding, four are 16."""
    monkeypatch.setattr(rescore, "BATCH_TOKENS", tokens)
    logged = {i: Rollout((1,), (2,) * (length - 1)) for i, length in enumerate((4, 2, 4, 3))}
    assert list(rescore._batches(logged)) == batches


def test_an_empty_response_needs_no_pass(scorer, monkeypatch):
    monkeypatch.setattr(Scorer, "_scores", lambda *_: pytest.fail("a pass"))
    (chunk,) = scorer.fill([chunk_of([Rollout((1, 2), ())])], Reading())
    assert chunk.rollout(0).trainer_logprobs == ()

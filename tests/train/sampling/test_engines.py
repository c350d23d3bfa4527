"""The engine that a configuration names, and the check of its first responses."""

import copy
import statistics
from dataclasses import replace

import pytest
import torch

from holdfast.errors import ConfigError, EngineError
from holdfast.rollout.embedded.embedded import EmbeddedEngine
from holdfast.rollout.engine import Sampling
from holdfast.rollout.models import character_tokenizer, tiny_model
from holdfast.tasks.base import Problem
from holdfast.train.sampling.engines import build_engine, check_first_batch, check_tokens, judge_of, sleeps
from holdfast.train.sampling.episodes import Episode, Writing
from holdfast.train.settings.configfile import build_config

TOKENIZER = character_tokenizer("0123456789")


@pytest.fixture(scope="module")
def model():
    built = tiny_model(TOKENIZER, hidden=32, layers=1, heads=2, seed=3).eval()
    with torch.no_grad():  # sharp enough that another model's numbers are nowhere near
        built.get_output_embeddings().weight.mul_(60)
    return built


def written(model, end=2, **options):
    sampling = Sampling(max_tokens=12)
    engine = EmbeddedEngine(model, eos_token_id=end, pad_token_id=0)
    episodes = [Episode(i, Problem("", "", None, ""), (1, 4 + i)) for i in range(8)]
    writing = Writing(sampling, **options)
    return writing.advance(engine, episodes, budget=12, seed=lambda call: call), sampling


def test_settings_reach_the_engine(model, tmp_path):
    config = build_config({"engine": {"precision": "bfloat16", "lag": 3}})
    engine = build_engine(config, model, TOKENIZER, tmp_path)
    assert isinstance(engine, EmbeddedEngine) and (engine.precision, engine.lag) == ("bfloat16", 3)
    with pytest.raises(ConfigError, match=r"engine.lag = 2 with engine.kind = 'vllm'"):
        build_engine(build_config({"engine": {"kind": "vllm", "lag": 2}}), model, TOKENIZER, tmp_path)
    with pytest.raises(ConfigError, match=r"engine.sync = 'restart' needs engine.command"):
        build_engine(build_config({"engine": {"kind": "server", "sync": "restart"}}), model, TOKENIZER, tmp_path)


def test_evaluations_copy_nothing(model):
    """An engine outside that is in step answers itself; else the trainer's own model does, in blocks that fit."""
    outside = EmbeddedEngine(model, eos_token_id=2, pad_token_id=0)
    ours = build_config({"evaluation": {"cache_gib": 0.5}})
    vllm = build_config({"engine": {"kind": "vllm"}})
    assert judge_of(vllm, outside, model, TOKENIZER) is outside
    for judge in (judge_of(ours, outside, model, TOKENIZER), judge_of(vllm, None, model, TOKENIZER)):
        assert judge.model is model and judge.precision is None
    assert judge_of(ours, outside, model, TOKENIZER).cache_gib == 0.5


def test_an_engine_sleeps_where_it_takes_turns_with_the_trainer():
    assert sleeps(build_config({"engine": {"kind": "vllm"}}))
    assert not sleeps(build_config({"engine": {"kind": "vllm", "sleep": False}}))
    assert not sleeps(build_config({"engine": {"kind": "vllm"}, "async": {"staleness": 1}}))
    with pytest.raises(ConfigError, match=r"engine.sleep = true and async.staleness = 1.*nearest valid value"):
        build_config({"engine": {"kind": "vllm", "sleep": True}, "async": {"staleness": 1}})


def test_an_engine_with_the_policy_s_weights_passes(model):
    check_first_batch(model, *written(model))


def test_a_tool_s_answer_is_not_scored_as_if_it_had_been_sampled(model):
    common = statistics.mode(token for episode in written(model)[0] for token in episode.token_ids[2:6])
    episodes, sampling = written(model, common, reply=lambda problem, turn: (5, 6, 7), max_turns=3)
    assert any(not all(episode.sampled) for episode in episodes)
    check_first_batch(model, episodes, sampling)


def test_another_model_s_log_probabilities_are_caught(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    with pytest.raises(EngineError, match=r"not those of the policy: .*mean .*Δ log p"):
        check_first_batch(model, *written(other))


def test_an_engine_outside_is_checked_once_before_anything_is_trained(small_run, monkeypatch):
    """The configuration says "server", what runs is an embedded engine that moves every log-probability by 1."""
    from holdfast.train import setup

    class Off(EmbeddedEngine):
        def generate(self, *args, **options):
            return [replace(c, logprobs=c.logprobs - 1.0) for c in super().generate(*args, **options)]

    calls = []
    check = setup.check_first_batch
    monkeypatch.setattr(setup, "check_first_batch", lambda *args: calls.append(1) or check(*args))
    kinds = {"good": EmbeddedEngine, "bad": Off}
    for name, kind in kinds.items():
        monkeypatch.setattr(
            setup, "build_engine", lambda config, model, tokenizer, folder, kind=kind: kind(
                model, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
            ),
        )  # fmt: skip
        options = ["--engine.kind", "server", "--engine.lag", "0", "--steps", "2"]
        if name == "good":
            small_run(name, *options)
        else:
            with pytest.raises(EngineError, match="not those of the policy"):
                small_run(name, *options)
    assert len(calls) == 2, "once per run"


def test_a_token_that_the_model_does_not_have_is_named():
    episodes = [
        Episode(4, Problem("", "", None, ""), (1,), (0, 9)),
        Episode(5, Problem("", "", None, ""), (1,), (3, 10)),
    ]
    check_tokens("server", episodes, 11)
    with pytest.raises(EngineError, match=r"the server engine, sequence 5: token 1 of the response is 10, .* has 10"):
        check_tokens("server", episodes, 10)


def test_a_sampling_mask_of_another_vocabulary_is_an_error():
    fits = Episode(5, Problem("?", "", None, "test"), (1,), (3,), support_ids=torch.tensor([3, 9]))
    check_tokens("vllm", [fits], 10)
    for ids in ([3, 10], [-1, 3]):
        with pytest.raises(EngineError, match=r"the vllm engine, sequence 5: its sampling mask names .* has 10"):
            check_tokens("vllm", [replace(fits, support_ids=torch.tensor(ids))], 10)

"""The one door to every engine, and what it refuses. Engines outside are tested in tests/vllm and test_server.py."""

import sys

import pytest
import torch

from holdfast.errors import ConfigError, EngineError
from holdfast.rollout.embedded.embedded import EmbeddedEngine
from holdfast.rollout.engine import Sampling
from holdfast.rollout.engines import EngineSettings, make_engine
from holdfast.rollout.models import character_tokenizer, load_model, tiny_model
from holdfast.rollout.outside.external import write_model


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer("0123456789+=")


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model(tokenizer, hidden=16, layers=1, heads=2)


def test_the_embedded_engine_runs_the_trainers_weights(model, tokenizer, tmp_path):
    engine = make_engine(EngineSettings(precision="int8", lag=2), model, tokenizer, tmp_path / "engine")
    assert isinstance(engine, EmbeddedEngine)
    assert (engine.precision, engine.lag, engine.policy_version) == ("int8", 2, 0)
    assert engine.eos_token_id == tokenizer.eos_token_id
    assert len(engine.generate([[1, 4]], Sampling(max_tokens=3), seed=0, sequence_ids=[0])) == 1
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "vlm"}, "engine.kind = 'vlm': did you mean vllm"),
        ({"kind": "vllm", "lag": 2}, "engine.lag = 2 with engine.kind = 'vllm': only the embedded engine lags"),
        ({"kind": "vllm", "compile": True}, "engine.compile with engine.kind = 'vllm': only the embedded engine is"),
        ({"kind": "server", "sync": "restart"}, "engine.sync = 'restart' needs engine.command"),
        ({"cache_gib": 0.0}, "engine.cache_gib = 0.0"),
        ({"concurrency": 0}, "engine.concurrency = 0"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        EngineSettings(**options)


def test_vllm_that_is_not_there_is_said_so(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"needs vLLM beside the trainer.*or use engine.kind = 'server'"):
        make_engine(EngineSettings(kind="vllm"), model, tokenizer, tmp_path)


def test_a_server_that_is_not_there_is_said_so(model, tokenizer, tmp_path):
    settings = EngineSettings(kind="server", url="http://127.0.0.1:1", retries=0)
    with pytest.raises(EngineError, match="/v1/models was asked once and failed, the last time with ConnectionRefused"):
        make_engine(settings, model, tokenizer, tmp_path)
    command = (sys.executable, "-c", "raise SystemExit(3)", "{folder}")
    with pytest.raises(EngineError, match="ended with exit code 3 while starting"):
        make_engine(EngineSettings(kind="server", sync="restart", command=command), model, tokenizer, tmp_path)


def test_a_written_model_is_the_model(model, tokenizer, tmp_path):
    write_model(model, tokenizer, tmp_path / "model")
    again, own = load_model(str(tmp_path / "model"), torch.float32)
    assert own.get_vocab() == tokenizer.get_vocab()
    # a model that was never saved does not know its class yet, and an engine asks for it
    assert model.config.architectures is None
    assert again.config.architectures == ["Qwen3ForCausalLM"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name

"""A small policy that vLLM can run on a CPU (its attention wants heads of at least 32), far from certain of anything.

Run by `make test-vllm` in an environment of its own; skipped where there is no vLLM.
"""

import socket
import sys
from pathlib import Path

import pytest
import torch

from holdfast.rollout.engine import sampling_logprobs
from holdfast.rollout.models import character_tokenizer, tiny_model
from holdfast.rollout.outside.http import HttpClient
from holdfast.rollout.outside.process import ServerProcess

HERE = Path(__file__).parent
ALPHABET = "0123456789+-*/=()<>abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOP .,"
# `vllm serve {folder}` by its module: the command of the CPU build asks for the version of a package of another name.
COMMAND = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", "{folder}"]
COMMAND += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1", "--dtype", "float32", "--enforce-eager"]
COMMAND += ["--max-model-len", "512", "--kv-cache-memory-bytes", "250M", "--host", "127.0.0.1", "--port"]
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "WARNING"}


def pytest_collection_modifyitems(items):
    """The engine's own warnings are not ours to fix."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def tokenizer():
    return character_tokenizer(ALPHABET)


@pytest.fixture(scope="session")
def make_model(tokenizer):
    """make_model(seed, sharpness): a random Qwen3; the same seed gives the same weights."""

    def make(seed: int = 0, sharpness: float = 4.0):
        model = tiny_model(tokenizer, hidden=128, layers=2, heads=4, seed=seed).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(sharpness)
        return model

    return make


@pytest.fixture(scope="session")
def model_folder(make_model, tokenizer, tmp_path_factory):
    """The folder of make_model(0), as a trainer would save it."""
    folder = tmp_path_factory.mktemp("model")
    make_model(0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """prepared(*options): a server's process with these options beside COMMAND's, not started yet."""
    made = []

    def make(*options):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        client = HttpClient(f"http://127.0.0.1:{port}")
        log = tmp_path_factory.mktemp("server") / "log"
        made.append(ServerProcess([*COMMAND, str(port), *options], client, log, environment=ENVIRONMENT))
        return made[-1]

    yield make
    for process in made:
        process.stop()


@pytest.fixture(scope="session")
def process(prepared, model_folder):
    process = prepared()
    process.start(model_folder, patience=600.0)
    return process


@pytest.fixture(scope="session")
def whole_forward():
    """whole_forward(model, prompt, completion): logits that predict each response token, from one pass over both."""

    def logits(model, prompt, completion):
        ids = torch.tensor([[*prompt, *completion.token_ids]])
        with torch.no_grad():
            return model(ids).logits[0, len(prompt) - 1 : -1].float()

    return logits


@pytest.fixture(scope="session")
def reported_exactly(whole_forward):
    """reported_exactly(model, prompt, completion, sampling): asserts that the completion's whole distributions are the
    model's, and that its log-probabilities and its 20 likeliest tokens are taken from them."""

    def check(model, prompt, completion, sampling):
        expected = sampling_logprobs(whole_forward(model, prompt, completion), sampling)
        assert completion.distributions.shape == expected.shape == (len(completion.token_ids), model.config.vocab_size)
        assert torch.equal(completion.distributions.isfinite(), expected.isfinite())
        assert torch.allclose(completion.distributions, expected, atol=2e-4)
        tokens = torch.tensor(completion.token_ids)[:, None]
        assert torch.equal(completion.logprobs, completion.distributions.gather(1, tokens)[:, 0])
        assert torch.equal(completion.top_logprobs, completion.distributions.topk(20, dim=1).values)
        assert torch.equal(completion.top_logprobs, completion.distributions.gather(1, completion.top_ids))

    return check

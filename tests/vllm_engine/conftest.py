"""A small policy that vLLM can run on a CPU (its attention wants heads of at least 32), far from certain of anything.

Run by `make test-vllm` in an environment of its own; skipped where there is no vLLM.
"""

from pathlib import Path

import pytest
import torch

from holdfast.rollout.models import character_tokenizer, tiny_model

HERE = Path(__file__).parent
ALPHABET = "0123456789+-*/=()<>abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOP .,"


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
def whole_forward():
    """whole_forward(model, prompt, completion): logits that predict each response token, from one pass over both."""

    def logits(model, prompt, completion):
        ids = torch.tensor([[*prompt, *completion.token_ids]])
        with torch.no_grad():
            return model(ids).logits[0, len(prompt) - 1 : -1].float()

    return logits

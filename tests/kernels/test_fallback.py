"""A program that cannot be built or does not fit: torch takes over for good, with the right result, said once."""

import subprocess
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from holdfast.kernels import Chunked, Head, choose, dispatch, fallback, lm_head_stats
from holdfast.kernels.fallback import Guarded, is_build_error


class OutOfResources(Exception):
    """As Triton raises it where a program needs more shared memory than the device has."""

    __module__ = "triton.runtime.errors"


DOES_NOT_FIT = OutOfResources(
    "out of resource: shared memory, Required: 131072, Hardware limit: 101376. Reducing block sizes may help."
)


class Broken:
    """Chunked, but for the pass that raises; counts the tries."""

    def __init__(self, error, where):
        self.error, self.where, self.tries = error, where, 0

    def forward(self, *arguments):
        return self._run("forward", *arguments)

    def backward(self, *arguments):
        return self._run("backward", *arguments)

    def _run(self, name, *arguments):
        if name == self.where:
            self.tries += 1
            raise self.error
        return getattr(Chunked(), name)(*arguments)


@pytest.fixture
def setting(monkeypatch):
    fallback.warn_once.cache_clear()
    monkeypatch.setattr(dispatch, "triton_obstacle", lambda device, dtype: None)
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(5, 8, generator=g), torch.randn(300, 8, generator=g)
    return hidden, weight, torch.arange(5)


def run(setting, implementation):
    hidden, weight, targets = setting
    leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    stats = lm_head_stats(*leaves, targets, implementation=implementation)
    (stats.logprobs + 0.1 * stats.entropy).sum().backward()
    return [stats.logprobs.detach(), stats.entropy.detach(), *(x.grad for x in leaves)]


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_torch_takes_over_once(setting, where, monkeypatch):
    broken = Broken(DOES_NOT_FIT, where)
    guard = Guarded(broken)
    monkeypatch.setattr(dispatch, "_triton", lambda device, dtype: guard)
    assert choose(Head(setting[1]), "triton").name == "triton"
    expected = run(setting, "chunked")
    with pytest.warns(RuntimeWarning, match=r"OutOfResources: .*Required: 131072, Hardware limit: 101376"):
        first = run(setting, "triton")
    dispatch.warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="the chunked torch implementation takes over"):
        choice = choose(Head(setting[1]), "triton")
    assert (choice.name, "101376" in choice.reason) == ("chunked", True)
    second = run(setting, "triton")  # a second warning would be an error
    for found in (first, second):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert broken.tries == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), RuntimeError("illegal memory access")])
def test_other_errors_are_raised(setting, error, monkeypatch):
    guard = Guarded(Broken(error, "forward"))
    monkeypatch.setattr(dispatch, "_triton", lambda device, dtype: guard)
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="memory"):
        run(setting, "triton")
    assert guard.failure is None


def test_what_counts_as_a_build_error():
    assert is_build_error(DOES_NOT_FIT)
    assert is_build_error(subprocess.CalledProcessError(1, ["gcc"]))
    assert is_build_error(RuntimeError("Failed to find C compiler. Please specify via CC environment variable."))
    assert is_build_error(RuntimeError("PassManager::run failed"))
    assert not is_build_error(torch.OutOfMemoryError("PassManager"))
    assert not is_build_error(ValueError("C compiler"))


@pytest.mark.usefixtures("setting")
def test_float32_on_cuda_goes_to_library_gemms():
    for dtype, name in ((torch.float32, "chunked"), (torch.bfloat16, "triton"), (torch.float16, "triton")):
        with FakeTensorMode():  # a device without a card
            choice = choose(Head(torch.empty(300, 8, dtype=dtype, device="cuda:0")))
        assert choice.name == name
        assert (dtype == torch.float32) == choice.reason.startswith("float32")

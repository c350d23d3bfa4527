"""The products behind every gradient: in place, in float32, and right in 16 bits."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from holdfast.kernels.tiles import accumulate, product


class Calls(TorchDispatchMode):
    """Operators with a result larger than 2**16 elements that none of their arguments holds."""

    def __init__(self):
        super().__init__()
        self.fresh = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = [id(x) for x in (*args, *(kwargs or {}).values())]
        if isinstance(result, torch.Tensor) and result.numel() > 2**16 and id(result) not in given:
            self.fresh.append(str(function))
        return result


@pytest.mark.parametrize("run", [accumulate, lambda total, a, b: product(a, b, total)], ids=["accumulate", "product"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_products_need_no_temporary(run, dtype, monkeypatch):
    """On a device without a card: [512, 1024] of float32 is made once, by the caller."""
    addmm = []
    monkeypatch.setattr(torch, "addmm", lambda *args, **options: addmm.append((args[0], options)))  # only CUDA has it
    with FakeTensorMode():
        total = torch.zeros(512, 1024, device="cuda")
        a, b = (torch.zeros(*size, device="cuda", dtype=dtype) for size in ((512, 64), (64, 1024)))
        with Calls() as calls:
            run(total, a, b)
    assert calls.fresh == []
    assert [(start is total, o["out"] is total, o["out_dtype"]) for start, o in addmm] == (
        [(True, True, torch.float32)] if run is accumulate and dtype == torch.bfloat16 else []
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_factors_never_round_the_result(dtype):
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*size, generator=g).to(dtype) for size in ((16, 64), (64, 16)))
    total = torch.ones(16, 16)
    accumulate(total, a, b)
    exact = a.double() @ b.double()
    assert (total - 1 - exact).abs().max() < 1e-5
    assert (product(a, b, torch.empty(16, 16)) - exact).abs().max() < 1e-5


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e9, 0.0])
def test_gradients_of_any_size_pass_through_float16(size):
    """In float16 itself 1e-12 is 0 and 1e9 is infinite."""
    g = torch.Generator().manual_seed(0)
    a, b = size * torch.randn(16, 64, generator=g), torch.randn(64, 16, generator=g).half()
    total = torch.zeros(16, 16)
    accumulate(total, a, b)
    assert (total - a.double() @ b.double()).norm() <= 2**-11 * (a.double() @ b.double()).norm()

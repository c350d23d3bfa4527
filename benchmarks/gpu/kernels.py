"""Part 1: the LM head is right, in bfloat16, float16 and float32, against float64."""

from __future__ import annotations

from typing import Any

import torch
from gpu.common import Check
from torch import Tensor

from holdfast.kernels import Head, choose, lm_head_stats

EXTRAS: dict[str, Any] = {"scale": 0.5, "softcap": 30.0, "temperature": 0.7}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def kernels(check: Check) -> None:
    """Values, gradients, and a row alone against the same row in a batch; ragged sizes, one row, a large one."""
    sizes = [(1, 64, 1000), (129, 72, 5003), (300, 1024, 151669), (2048, 1024, 151936)]
    for size in sizes if check.cuda else [(1, 64, 1000), (37, 72, 503)]:
        for dtype in DTYPES if size[0] < 2000 else (torch.bfloat16,):
            for extra in (False, True) if size[0] < 300 else (False,):
                _one(check, size, dtype, extra)
                check.clear()


def _one(check: Check, size: tuple[int, int, int], dtype: torch.dtype, extra: bool) -> None:
    shape = {"shape": "x".join(map(str, size)), "dtype": str(dtype).removeprefix("torch."), "extras": extra}
    try:
        check.note("kernels", **shape, **_errors(check, size, dtype, extra))
    except Exception as error:
        check.note("kernels", **shape, failed=f"{type(error).__name__}: {str(error)[:200]}")


def _errors(check: Check, size: tuple[int, int, int], dtype: torch.dtype, extra: bool) -> dict[str, Any]:
    rows, width, vocabulary = size
    g = torch.Generator(check.device).manual_seed(rows)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=g, device=check.device) * scale

    weight = normal(vocabulary, width, scale=3 / width**0.5).to(dtype).requires_grad_()
    hidden = normal(rows, width).to(dtype).requires_grad_()
    states = (hidden.detach().float() + normal(rows, width, scale=1e-2)).to(dtype)
    bias = normal(vocabulary).to(dtype) if extra else None
    targets = torch.randint(vocabulary, (rows,), generator=g, device=check.device)
    upstream = normal(2, rows)
    form = {name: EXTRAS[name] for name in ("scale", "softcap")} if extra else {}
    temperature = EXTRAS["temperature"] if extra else 1.0
    head, other = Head(weight, bias, **form), Head(weight.detach(), bias, **form)
    stats = lm_head_stats(
        hidden, head, targets, temperature=temperature, rollout=(states, other), outputs=("entropy", "kl_rollout")
    )
    assert stats.entropy is not None
    assert stats.kl_rollout is not None
    ((stats.logprobs * upstream[0]).sum() + (stats.entropy * upstream[1]).sum()).backward()
    middle = slice(rows // 2, rows // 2 + 1)
    with torch.no_grad():
        alone = lm_head_stats(hidden[middle], head, targets[middle], temperature=temperature).logprobs
    exact = _exact(head, temperature, (hidden, states), targets, upstream)
    return {
        "form": choose(head).name,
        "logprob": float((stats.logprobs - exact["logprob"]).abs().max().detach()),
        "entropy": float((stats.entropy - exact["entropy"]).abs().max().detach()),
        "kl_relative": float(((stats.kl_rollout - exact["kl"]).abs() / exact["kl"].clamp_min(1e-12)).max()),
        "dh": _relative(hidden.grad, exact["dh"]),
        "dW": _relative(weight.grad, exact["dW"]),
        "row_alone_equal": bool(torch.equal(alone, stats.logprobs.detach()[middle])),
    }


def _exact(
    head: Head, temperature: float, states: tuple[Tensor, Tensor], targets: Tensor, upstream: Tensor
) -> dict[str, Tensor]:
    """The same in float64, with all logits."""
    hidden, weight = (x.detach().double().requires_grad_() for x in (states[0], head.weight))
    rollout = states[1].double()

    def log_p(x: Tensor) -> Tensor:
        z = x @ weight.T if head.bias is None else x @ weight.T + head.bias.double()
        z = z * head.scale
        z = z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)
        return torch.log_softmax(z / temperature, dim=1)

    ours = log_p(hidden)
    entropy = -(ours.exp() * ours).sum(dim=1)
    logprob = ours.gather(1, targets[:, None])[:, 0]
    ((logprob * upstream[0]).sum() + (entropy * upstream[1]).sum()).backward()
    with torch.no_grad():
        theirs = log_p(rollout)
        kl = (theirs.exp() * (theirs - ours)).sum(dim=1)
    assert hidden.grad is not None
    assert weight.grad is not None
    values = {"logprob": logprob.detach(), "entropy": entropy.detach(), "kl": kl}
    return values | {"dh": hidden.grad, "dW": weight.grad}


def _relative(found: Tensor | None, expected: Tensor) -> float:
    assert found is not None
    return float((found.double() - expected).norm() / expected.norm())

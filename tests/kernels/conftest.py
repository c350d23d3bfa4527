"""Cases for the head, and its statistics a second time: float64, all logits, straight from the formulas."""

import os
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from holdfast.kernels import Head

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it on its first import

ALL = ("entropy", "sum_p2", "entropy_change", "kl_rollout", "tv_rollout", "chi2_rollout")


@dataclass(frozen=True)
class Case:
    hidden: Tensor
    head: Head
    targets: Tensor
    rollout: tuple[Tensor, Head]
    settings: dict[str, Any] = field(default_factory=dict)

    def to(self, dtype: torch.dtype) -> "Case":
        def head(h: Head) -> Head:
            return replace(h, weight=h.weight.to(dtype), bias=None if h.bias is None else h.bias.to(dtype))

        states, other = self.rollout
        return replace(
            self, hidden=self.hidden.to(dtype), head=head(self.head), rollout=(states.to(dtype), head(other))
        )

    def trainable(self) -> "Case":
        """The same numbers as leaves that want a gradient."""
        weight = self.head.weight.detach().clone().requires_grad_()
        bias = None if self.head.bias is None else self.head.bias.detach().clone().requires_grad_()
        hidden = self.hidden.detach().clone().requires_grad_()
        return replace(self, hidden=hidden, head=replace(self.head, weight=weight, bias=bias))


def make_case(rows=37, width=24, vocabulary=301, *, drift=0.05, seed=0, plain=False, spread=2.0) -> Case:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=g)
    weight = spread * torch.randn(vocabulary, width, generator=g) / width**0.5
    bias = None if plain else torch.randn(vocabulary, generator=g)
    extras: dict[str, Any] = {} if plain else {"scale": 1.5, "softcap": 9.0}
    states = hidden + drift * torch.randn(rows, width, generator=g)
    targets = torch.randint(vocabulary, (rows,), generator=g)
    settings = {} if plain else {"temperature": 0.5 + torch.rand(rows, generator=g)}
    return Case(hidden, Head(weight, bias, **extras), targets, (states, Head(weight.clone(), bias, **extras)), settings)


def oracle(case: Case) -> dict[str, Tensor]:
    """Every statistic from float64 logits; the first two carry gradients."""
    case = case if case.hidden.dtype == torch.float64 else case.to(torch.float64)
    temperature = torch.as_tensor(case.settings.get("temperature", 1.0)).double().reshape(-1, 1)

    def logits(hidden: Tensor, head: Head) -> Tensor:
        z = hidden @ head.weight.T
        z = head.scale * (z if head.bias is None else z + head.bias)
        return (z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)) / temperature

    z, z_r = logits(case.hidden, case.head), logits(*case.rollout)
    log_p, log_r = (x - torch.logsumexp(x, dim=1, keepdim=True) for x in (z, z_r))
    p, r = log_p.exp(), log_r.exp()
    onehot = torch.nn.functional.one_hot(case.targets, z.shape[1]).double()
    entropy = -(p * log_p).sum(dim=1)
    entropy_slope = -p * (log_p + entropy[:, None])
    return {
        "logprobs": (onehot * log_p).sum(dim=1),
        "entropy": entropy,
        "sum_p2": (p * p).sum(dim=1),
        "entropy_change": (entropy_slope * (onehot - p)).sum(dim=1),
        "kl_rollout": (r * (log_r - log_p)).sum(dim=1),
        "tv_rollout": (p - r).abs().sum(dim=1) / 2,
        "chi2_rollout": (r * torch.expm1(log_p - log_r) ** 2).sum(dim=1),
        "log_p": log_p,
    }


def error(found: Tensor, expected: Tensor) -> float:
    """Relative error of a whole tensor."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture
def tools() -> Any:
    class Tools:
        pass

    box = Tools()
    box.__dict__.update(make_case=make_case, oracle=oracle, error=error, ALL=ALL)
    return box

"""Part 2: every preset gives the CPU's loss and gradient, and no operation waits for the device."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from gpu.common import Check
from torch import Tensor

from holdfast import Batch, Objective, TokenStats, list_presets, preset

JOINED = "trm+sspo+kl_cov"


def presets(check: Check) -> None:
    """Names that fail and why; an empty list is what one hopes for."""
    batch, stats = _rollouts()
    there = _moved(batch, check.device), _moved(stats, check.device)
    check.sync()
    names, bad = [*(getattr(row, "name", row) for row in list_presets()), JOINED], []
    for name in names:
        problem = _difference(check, preset(name), (batch, stats), there)
        bad += [f"{name}: {problem}"] if problem else []
    check.note("presets", count=len(names), bad=bad)


def _difference(check: Check, objective: Objective, here: tuple[Any, Any], there: tuple[Any, Any]) -> str:
    try:
        expected = _once(objective, *here)
        _once(objective, *there)  # kernels are loaded, which waits
        if check.cuda:
            torch.cuda.set_sync_debug_mode("error")
        loss, gradient = _once(objective, *there)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:120]}"
    finally:
        if check.cuda:
            torch.cuda.set_sync_debug_mode("default")
    same = torch.allclose(expected[0], loss.cpu(), rtol=1e-4, atol=1e-7)
    same = same and torch.allclose(expected[1], gradient.cpu(), rtol=1e-3, atol=1e-8)
    return "" if same else f"another loss or gradient: {float(loss):.6g} instead of {float(expected[0]):.6g}"


def _once(objective: Objective, batch: Batch, stats: TokenStats) -> tuple[Tensor, Tensor]:
    assert stats.entropy is not None
    leaves = {name: getattr(stats, name).clone().requires_grad_() for name in ("logprobs", "entropy")}
    stats = replace(stats, **leaves)
    output = objective(batch, stats, plan=objective.prepare(batch, stats.detach(), validate=False))
    output.loss.backward()
    gradient = leaves["logprobs"].grad
    return output.loss.detach(), torch.zeros_like(stats.logprobs) if gradient is None else gradient


def _rollouts(rows: int = 64, length: int = 256) -> tuple[Batch, TokenStats]:
    """Ragged sequences of several turns, with every column that some objective reads."""
    g = torch.Generator().manual_seed(0)
    mask = torch.arange(length)[None] < torch.randint(8, length + 1, (rows, 1), generator=g)
    logprobs = -torch.rand(rows, length, generator=g) - 0.1

    def near(spread: float) -> Tensor:
        return (logprobs + spread * torch.randn(rows, length, generator=g)).clamp(max=-1e-3)

    def small(size: float) -> Tensor:
        return size * torch.rand(rows, length, generator=g)

    batch = Batch(
        advantages=torch.randn(rows, length, generator=g) * mask,
        response_mask=mask,
        old_logprobs=near(0.05),
        rollout_logprobs=near(0.1),
        ref_logprobs=near(0.2),
        teacher_logprobs=near(0.2),
        turn_ids=(torch.arange(length) // 40).expand(rows, -1).clone(),
        sequence_ids=torch.arange(rows),
        group_ids=torch.arange(rows) // 8,
    )
    divergences = {"kl_rollout": 0.01, "tv_rollout": 0.05, "chi2_rollout": 0.01}
    divergences |= {"kl_rollout_lower": 0.01, "tv_rollout_lower": 0.01, "tv_rollout_upper": 0.05}
    columns = {name: small(size) for name, size in divergences.items()}
    return batch, TokenStats(logprobs=logprobs, entropy=small(1.0), **columns)


def _moved(record: Any, device: str) -> Any:
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    return replace(record, **{name: x.to(device) for name, x in values.items() if isinstance(x, Tensor)})

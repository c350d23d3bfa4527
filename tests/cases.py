"""Random batches for the tests of objectives: ragged responses, every optional field filled, a fixed seed."""

from dataclasses import replace

import torch
from torch import Tensor

from holdfast import Batch, TokenStats


def random_batch(
    sequences: int = 8,
    tokens: int = 12,
    *,
    seed: int = 0,
    drift: float = 0.3,
    staleness: float = 0.2,
    dtype: torch.dtype = torch.float64,
) -> tuple[Batch, TokenStats]:
    """A batch and the current policy on it: log-ratios of size `staleness` to old and `drift` more to rollout."""
    g = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(sequences, tokens, generator=g, dtype=torch.float64)

    lengths = torch.randint(1, tokens + 1, (sequences,), generator=g)
    mask = torch.arange(tokens)[None] < lengths[:, None]
    mask &= torch.rand(sequences, tokens, generator=g) > 0.1
    mask[:, 0] = True
    logprobs = -torch.rand(sequences, tokens, generator=g, dtype=torch.float64) * 3 - 0.1
    old = (logprobs + noise(staleness)).clamp(max=-1e-3)
    rollout = (old + noise(drift)).clamp(max=-1e-3)
    exact = noise(0.1).abs()
    # Drawn apart: the other fields are what they were without it.
    other = torch.Generator().manual_seed(seed + 1)
    teacher = 0.5 * torch.randn(sequences, tokens, generator=other, dtype=torch.float64)
    batch = Batch(
        advantages=torch.randn(sequences, generator=g, dtype=torch.float64),
        response_mask=mask,
        old_logprobs=old,
        rollout_logprobs=rollout,
        ref_logprobs=(logprobs + noise(0.2)).clamp(max=-1e-3),
        teacher_logprobs=(logprobs + teacher).clamp(max=-1e-3),
        turn_ids=(torch.arange(tokens) // 4).expand(sequences, tokens).contiguous(),
        sequence_ids=torch.randperm(1000, generator=g)[:sequences],
        group_ids=torch.arange(sequences) // 4,
    )
    stats = TokenStats(
        logprobs=logprobs,
        entropy=torch.rand(sequences, tokens, generator=g, dtype=torch.float64),
        kl_rollout=exact,
        tv_rollout=(exact / 2).sqrt().clamp(max=1),
        chi2_rollout=2 * exact,
        kl_rollout_lower=exact / 2,
        tv_rollout_lower=(exact / 4).sqrt().clamp(max=1),
        tv_rollout_upper=exact.sqrt().clamp(max=1),
    )
    return cast(batch, stats, dtype)


def cast(batch: Batch, stats: TokenStats, dtype: torch.dtype) -> tuple[Batch, TokenStats]:
    """Every floating tensor in `dtype`."""

    def change(record):
        values = {k: v.to(dtype) for k, v in vars(record).items() if isinstance(v, Tensor) and v.is_floating_point()}
        return replace(record, **values)

    return change(batch), change(stats)


def with_gradient(stats: TokenStats) -> TokenStats:
    """The same statistics with fresh leaves for logprobs and entropy."""
    entropy = None if stats.entropy is None else stats.entropy.detach().clone().requires_grad_()
    return replace(stats, logprobs=stats.logprobs.detach().clone().requires_grad_(), entropy=entropy)


def gradients(objective, batch: Batch, stats: TokenStats, plan=None) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, gradient of the log-probabilities, gradient of the entropies) of one call."""
    leaves = with_gradient(stats)
    out = objective(batch, leaves, plan=plan)
    assert leaves.entropy is not None
    grads = torch.autograd.grad(out.loss, [leaves.logprobs, leaves.entropy], allow_unused=True, materialize_grads=True)
    return out.loss.detach(), *grads

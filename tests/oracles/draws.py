"""Random float64 batches for the oracles, and what "the same" means."""

from dataclasses import replace

import torch
from torch import Tensor

from cases import with_gradient
from holdfast import Batch, TokenStats
from oracles.rows import TOLERANCE, WIDEST


def draw(
    seed: int, *, min_tokens: int = 1, widest: float = WIDEST, sequences: int | None = None
) -> tuple[Batch, TokenStats]:
    """A ragged batch with holes: log-ratios from .02 to `widest`, advantages per sequence or token, a quarter zero.

    Log-probabilities and entropies are float32 numbers in float64, because a peer may pass them through float32.
    """
    g = torch.Generator().manual_seed(seed)
    rows = sequences or int(torch.randint(1, 9, (), generator=g))
    length = min_tokens + int(torch.randint(1, 24, (), generator=g))

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g).double()

    def noise(*shape: int) -> Tensor:
        size = (0.02, 0.3, 2.0, widest)[seed % 4]
        wide = (2 * uniform(*shape) - 1) * widest
        return (wide if size == widest else size * torch.randn(*shape, generator=g).double()).clamp(-widest, widest)

    lengths = torch.randint(min_tokens, length + 1, (rows, 1), generator=g)
    mask = torch.arange(length) < lengths
    mask &= (torch.rand(rows, length, generator=g) > 0.1) | (mask.cumsum(-1) <= min_tokens)
    logprobs = -3 * uniform(rows, length) - 0.1
    policies = [
        logprobs,
        logprobs - noise(rows, length),
        logprobs - noise(rows, length),
        logprobs - noise(rows, length),
    ]
    # One shift per token keeps the ratios and brings every log-probability below zero.
    shift = torch.stack(policies).amax(0).clamp(min=0) + 0.01
    logprobs, old, rollout, ref = ((policy - shift).float().double() for policy in policies)
    advantages = (
        torch.randn(rows, length, generator=g).double() if seed % 3 == 2 else torch.randn(rows, generator=g).double()
    )
    advantages = advantages * (torch.rand(advantages.shape, generator=g) > 0.25)
    batch = Batch(
        advantages=advantages,
        response_mask=mask,
        old_logprobs=old,
        rollout_logprobs=rollout,
        ref_logprobs=ref,
        sequence_ids=torch.arange(rows),
    )
    return batch, TokenStats(logprobs=logprobs, entropy=2 * uniform(rows, length))


def per_sequence(batch: Batch) -> Batch:
    """The same batch with one advantage per sequence."""
    return batch if batch.advantages.ndim == 1 else replace(batch, advantages=batch.advantages[:, 0].clone())


def derivatives(loss: Tensor, stats: TokenStats) -> tuple[Tensor, Tensor]:
    """Gradients of the log-probabilities and of the entropies; zeros where the loss does not use them."""
    leaves = [stats.logprobs, stats.entropy]
    gradient, entropy = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return gradient, entropy


def run_ours(objective, batch: Batch, stats: TokenStats, plan=None) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, gradient of log-probabilities, gradient of entropies) of Holdfast."""
    leaves = with_gradient(stats)
    loss = objective(batch, leaves, plan=plan).loss
    return loss.detach(), *derivatives(loss, leaves)


def assert_same(
    ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], rtol: float = TOLERANCE, size: float = 0.0
) -> None:
    """(loss, gradients): every gradient element and the loss within `rtol`, relative.

    `size` is that of the advantages: what lies 1e-13 below it or below the largest element is rounding (a saturated
    sigmoid's slope, σ(1 − σ), has no digits left there), and so is 1e-12 of the sum of all terms for the loss.
    """
    loss, *gradients = theirs
    terms = float(sum(gradient.abs().sum() for gradient in gradients))
    torch.testing.assert_close(ours[0], loss, rtol=rtol, atol=1e-12 * max(terms, size))
    for mine, gradient in zip(ours[1:], gradients, strict=True):
        torch.testing.assert_close(mine, gradient, rtol=rtol, atol=1e-13 * max(float(gradient.abs().max()), size))


def differ(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], rtol: float = 1e-6) -> bool:
    """True where the two do not agree: what a demonstration of a difference must see."""
    try:
        assert_same(ours, theirs, rtol)
    except AssertionError:
        return True
    return False

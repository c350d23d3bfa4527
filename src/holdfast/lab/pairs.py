"""Pairs of policies to test a claim on: random, sparse, dense, growing with position, and adversarial ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.errors import ConfigError, nearest
from holdfast.lab.trees import Drift, Levels, TreePair, error_weights, measure, worst_error

KINDS = ("random", "sparse", "dense", "late", "tight")
LEAVES = 4**9


def make_pairs(
    kind: str,
    size: Float[Tensor, " N"],
    *,
    vocabulary: int,
    horizon: int,
    generator: torch.Generator,
    share: float = 0.1,
    stop: bool = False,
    background: float = 0.0,
) -> TreePair:
    """N pairs over V symbols and T positions whose drift at a context is about size[n] (KL about size²/2).

    - random: every logit moves by size · N(0, 1).
    - sparse: as random, but only at a `share` of the contexts; elsewhere a random drift of size `background`.
    - dense: every logit moves by ±size, so that every context drifts alike.
    - late: as random, growing linearly with the position.
    - tight: p uniform (V even), q = p (1 ± tanh(size)), half the tokens up and half down: at every context KL is the
      least that its TV allows (Pinsker holds with equality to second order), the hardest case for a bound from KL.

    With `stop`, token 0 ends the response: past it both policies agree, so nothing drifts. ConfigError for a tree that
    is too large to enumerate or an unknown kind.
    """
    _check(kind, vocabulary, horizon, share)
    count = size.shape[0]
    scale = size.to(torch.float64)[:, None, None]
    rollout, current = [], []
    alive = torch.ones(count, 1, dtype=torch.bool)
    for depth in range(horizon):
        shape = (count, vocabulary**depth, vocabulary)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        base = torch.zeros(shape, dtype=torch.float64)
        if kind == "tight":
            signs = torch.ones(vocabulary, dtype=torch.float64)
            signs[vocabulary // 2 :] = -1
            step = scale * signs.expand(shape)
        else:
            base = base + 1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
            step = noise * (depth + 1) / horizon if kind == "late" else noise.sign() if kind == "dense" else noise
            step = scale * step
            if kind == "sparse":
                bad = torch.rand(shape[:2], generator=generator) < share
                step = torch.where(bad[..., None], step, background * noise)
        step = step * alive[..., None]
        rollout.append(base.log_softmax(-1))
        current.append((base + step).log_softmax(-1))
        alive = alive[..., None].repeat(1, 1, vocabulary)
        if stop:
            alive[..., 0] = False
        alive = alive.flatten(1)
    return TreePair(tuple(rollout), tuple(current))


def sharpen(
    pair: TreePair, bound: Callable[[Drift], Float[Tensor, " N"]], *, steps: int = 100, rate: float = 0.03
) -> TreePair:
    """Pairs bent by gradient ascent so that the exact worst-case error comes as close to `bound` as it can.

    Ascends log(worst error) - log(bound) over both policies' logits (Adam). A bound that can be broken near `pair`
    is broken here; a bound that holds shows how tight it can get.
    """
    logits = [level.detach().clone().requires_grad_() for level in (*pair.rollout, *pair.current)]
    optimiser = torch.optim.Adam(logits, lr=rate, maximize=True)

    def bent() -> TreePair:
        levels = [level.log_softmax(-1) for level in logits]
        return TreePair(tuple(levels[: pair.horizon]), tuple(levels[pair.horizon :]))

    for _ in range(steps):
        candidate = bent()
        error = worst_error(error_weights(candidate))
        gain = torch.log(error) - torch.log(bound(measure(candidate)))
        optimiser.zero_grad()
        gain.sum().backward()
        optimiser.step()
    final = bent()
    return TreePair(_detach(final.rollout), _detach(final.current))


def _detach(levels: Levels) -> Levels:
    return tuple(level.detach() for level in levels)


def _check(kind: str, vocabulary: int, horizon: int, share: float) -> None:
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of pair {kind!r}: {nearest(kind, KINDS)}")
    if vocabulary < 2 or horizon < 1:
        raise ConfigError(f"vocabulary {vocabulary} and horizon {horizon}: allowed are at least 2 and at least 1")
    if horizon * math.log(vocabulary) > math.log(LEAVES):
        raise ConfigError(
            f"{vocabulary}^{horizon} responses are too many to enumerate: allowed are {LEAVES}; lower the horizon, or "
            "use holdfast.lab.chains, which needs no tree"
        )
    if kind == "tight" and vocabulary % 2:
        raise ConfigError(f"vocabulary {vocabulary}: a tight pair splits the tokens in two halves, so it must be even")
    if not 0 <= share <= 1:
        raise ConfigError(f"share of drifting contexts is {share}, allowed is 0 to 1")

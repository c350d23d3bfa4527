"""Data sets of rollouts with their exact gain: enumerated trees, long coin tosses, and ways to be fooled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from holdfast.core.improvement import clipped_gain
from holdfast.core.units import split_by_prompt
from holdfast.lab.oracle import as_rollouts, expectation
from holdfast.lab.trees import Levels, TreePair, path_sums
from holdfast.types import Batch, TokenStats

Evidence = tuple[Batch, TokenStats, Tensor]


@dataclass(frozen=True)
class Sample:
    """One data set: what `certify` takes (or, for the betting test alone, its units), and the true gain."""

    evidence: Evidence | Tensor
    gain: float
    options: Mapping[str, Any] = field(default_factory=dict)


Draw = Callable[[Generator], Sample]


def rollouts(log_ratio: Float[Tensor, "n T"], kl: Tensor | None, reward: Float[Tensor, " n"]) -> Evidence:
    """Rollouts with these log-ratios; only differences of log-probabilities are read."""
    base = torch.full_like(log_ratio, -1.0)
    batch = Batch(torch.zeros(len(base)), torch.ones(base.shape, dtype=torch.bool), rollout_logprobs=base)
    return batch, TokenStats(base + log_ratio, kl_rollout=kl), reward


@dataclass(frozen=True)
class Step:
    """A random update of 20 prompts' policies over 3^4 responses each; rewards are 0 or 1.

    Logits drift by `size` · N(0, 1) and by `tilt` times the advantage of each token. `peak` sharpens both policies;
    `paid` is the share of responses that are rewarded (by probability). `rare` is the mass that θ moves at every
    context to a token that p writes once in 10,000 times, without reward; `bad` the share of contexts where θ all but
    gives up what p likes most. With `stop`, token 0 ends the response.
    """

    size: float = 0.1
    tilt: float = 0.6
    peak: float = 1.0
    paid: float = 0.5
    rare: float = 0.0
    bad: float = 0.0
    stop: bool = False
    prompts: int = 20
    vocabulary: int = 3
    horizon: int = 4

    def build(self, generator: Generator) -> tuple[TreePair, Float[Tensor, "N leaves"]]:
        """The pair of policies and the reward of every response."""
        shapes = [(self.prompts, self.vocabulary**t, self.vocabulary) for t in range(self.horizon)]
        rollout = [(1.5 * self.peak * _normal(shape, generator)).log_softmax(-1) for shape in shapes]
        if self.rare:
            rollout = [_with_last(level, 1e-4) for level in rollout]
        mass = path_sums(tuple(rollout))[-1].exp()
        order = torch.rand(mass.shape, generator=generator).argsort(-1)
        paid = mass.gather(1, order).cumsum(-1) <= self.paid
        reward = torch.zeros_like(mass).scatter(1, order, paid.double())
        if self.rare:  # responses that end in the rare token
            reward = reward * (torch.arange(mass.shape[1]) % self.vocabulary != self.vocabulary - 1)
        return TreePair(tuple(rollout), self._current(rollout, reward, generator)), reward

    def _current(self, rollout: list[Tensor], reward: Tensor, generator: Generator) -> Levels:
        worth, advantages = reward, []
        for level in reversed(rollout):
            of_token = worth.reshape(level.shape)
            worth = (level.exp() * of_token).sum(-1)
            advantages.insert(0, of_token - worth[..., None])
        alive, levels = torch.ones(self.prompts, 1, dtype=torch.bool), []
        for level, advantage in zip(rollout, advantages, strict=True):
            step = self.size * _normal(level.shape, generator) + self.tilt * advantage
            spoilt = torch.rand(level.shape[:2], generator=generator) < self.bad
            best = torch.nn.functional.one_hot(level.argmax(-1), self.vocabulary)
            step = step - 4.0 * best * spoilt[..., None]
            moved = (level + step).log_softmax(-1)
            moved = _with_last(moved, self.rare) if self.rare else moved
            levels.append(torch.where(alive[..., None], moved, level))
            alive = alive[..., None].repeat(1, 1, self.vocabulary)
            alive[..., 0] &= not self.stop
            alive = alive.flatten(1)
        return tuple(levels)


def tree(
    count: int,
    step: Step,
    *,
    exact: bool = True,
    threshold: float | None = None,
    span: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Draw:
    """`count` rollouts of prompts drawn from the step's own, with a reward of `span`."""
    pair, unit = step.build(Generator().manual_seed(seed))
    reward = span[0] + (span[1] - span[0]) * unit
    drift, mass = as_rollouts(pair), path_sums(pair.rollout)[-1].exp()
    gain = expectation(pair, reward.flatten() * torch.expm1(drift.log_ratio.sum(-1))).mean().item()
    options: dict[str, Any] = {"reward_range": span}
    if threshold is not None:
        options |= {"mask": "prefix", "threshold": threshold}

    def draw(generator: Generator) -> Sample:
        prompts = torch.randint(len(mass), (count,), generator=generator)
        rows = prompts * mass.shape[1] + torch.multinomial(mass[prompts], 1, generator=generator)[:, 0]
        kl = drift.kl[rows] if exact and drift.kl is not None else None
        return Sample(rollouts(drift.log_ratio[rows], kl, reward.flatten()[rows]), gain, options)

    return draw


def coins(count: int, horizon: int, shift: float) -> Draw:
    """Fair coins tossed `horizon` times, of which θ lands one side with ½ + `shift`; reward 1 for more than half."""
    tokens = torch.tensor([[0.5, 0.5], [0.5 - shift, 0.5 + shift]], dtype=torch.float64).log()
    ratio, kl = tokens[1] - tokens[0], (0.5 * (tokens[0] - tokens[1])).sum()
    ones = torch.arange(horizon + 1, dtype=torch.float64)
    choose = math.lgamma(horizon + 1) - torch.lgamma(ones + 1) - torch.lgamma(horizon - ones + 1)
    won = [(choose + ones * log[1] + (horizon - ones) * log[0]).exp()[ones > horizon / 2].sum() for log in tokens]

    def draw(generator: Generator) -> Sample:
        side = torch.randint(2, (count, horizon), generator=generator)
        reward = (side.sum(-1) > horizon / 2).double()
        return Sample(rollouts(ratio[side], kl.expand(count, horizon), reward), (won[1] - won[0]).item())

    return draw


def unseen_token(count: int) -> Draw:
    """One token: θ moves .3 of its mass to what p writes once in 10,000 times, and J falls by .06."""
    p, q = (torch.tensor(x, dtype=torch.float64) for x in ([0.5, 0.4999, 1e-4], [0.5, 0.2, 0.3]))
    reward = torch.tensor([1.0, 0.2, 0.0], dtype=torch.float64)
    return _one_token(count, p, q, reward)


def coin_flips(draw: Draw) -> Draw:
    """The same rollouts, paid by the toss of a coin: no policy gains."""

    def flipped(generator: Generator) -> Sample:
        sample = draw(generator)
        assert not isinstance(sample.evidence, Tensor)
        batch, stats, reward = sample.evidence
        coin = torch.randint(2, reward.shape, generator=generator).double()
        return replace(sample, evidence=(batch, stats, coin), gain=0.0)

    return flipped


def kl_overwritten(draw: Draw, value: float = 1e-9) -> Draw:
    """The same rollouts with a KL that is not theirs."""

    def forged(generator: Generator) -> Sample:
        sample = draw(generator)
        assert not isinstance(sample.evidence, Tensor)
        batch, stats, reward = sample.evidence
        kl = torch.full_like(stats.logprobs, value)
        return replace(sample, evidence=(batch, replace(stats, kl_rollout=kl), reward))

    return forged


def grouped(prompts: int, size: int, *, named: bool = True) -> Draw:
    """`size` rollouts of each prompt; the update helps half of all prompts by .1 and harms the other half as much."""

    def draw(generator: Generator) -> Sample:
        shift = (torch.randint(2, (prompts,), generator=generator) * 0.2 - 0.1).double().repeat_interleave(size)
        side = torch.randint(2, shift.shape, generator=generator)
        log_ratio, kl = _coin(0.5, 0.5 + shift, side)
        options = {"group_ids": torch.arange(prompts).repeat_interleave(size)} if named else {}
        return Sample(rollouts(log_ratio, kl, side.double()), 0.0, options)

    return draw


def rare_ruin(count: int, *, share: float = 0.005, exact: bool = True) -> Draw:
    """Nearly all prompts gain .004; a `share` of them, always solved before, is ruined, which costs more than that."""
    gain = (1 - share) * 0.004 + share * (0.01 - 0.99)

    def draw(generator: Generator) -> Sample:
        ruined = torch.rand(count, generator=generator) < share
        p = torch.where(ruined, 0.99, 0.5).double()
        side = (torch.rand(count, generator=generator) < p).long()
        log_ratio, kl = _coin(p, torch.where(ruined, 0.01, 0.504).double(), side)
        return Sample(rollouts(log_ratio, kl if exact else None, side.double()), gain)

    return draw


def trained(count: int, *, held_out: bool, arms: int = 64, rate: float = 0.3) -> Draw:
    """One policy-gradient step on coin-flip rewards, certified on its own rollouts or on the quarter held back."""

    def draw(generator: Generator) -> Sample:
        arm = torch.randint(arms, (count,), generator=generator)
        reward = torch.randint(2, (count,), generator=generator).double()
        everything = torch.ones(count, dtype=torch.bool)
        train, held = split_by_prompt(count, generator) if held_out else (everything, everything)
        logits = torch.zeros(arms, dtype=torch.float64)
        logits.index_add_(0, arm[train], rate * (reward[train] - 0.5) * arms / train.sum())
        ratio = logits.log_softmax(-1) + math.log(arms)
        kept = arm[held]
        kl = (-ratio.mean()).expand(len(kept), 1)
        return Sample(rollouts(ratio[kept][:, None], kl, reward[held]), 0.0)

    return draw


def watched_null(count: int) -> Draw:
    """Clipped gains of `count` prompts that are paid by the toss of a coin, for the betting test."""

    def draw(generator: Generator) -> Sample:
        side, coin = torch.randint(2, (2, count), generator=generator)
        log_ratio, _ = _coin(0.5, torch.full((count,), 0.65).double(), side)
        return Sample(clipped_gain(log_ratio, coin.double()), 0.0)

    return draw


def _one_token(count: int, p: Tensor, q: Tensor, reward: Tensor) -> Draw:
    def draw(generator: Generator) -> Sample:
        rows = torch.multinomial(p, count, replacement=True, generator=generator)
        kl = (p * (p / q).log()).sum().expand(count, 1)
        return Sample(rollouts((q / p).log()[rows][:, None], kl, reward[rows]), ((q - p) @ reward).item())

    return draw


def _coin(p: float | Tensor, q: Float[Tensor, " n"], side: Int[Tensor, " n"]) -> tuple[Tensor, Tensor]:
    """log ρ [n, 1] of the side that came up (1 with probability p, or q under θ), and KL [n, 1]."""
    p = torch.as_tensor(p, dtype=torch.float64).expand(len(q))
    up, down = (q / p).log(), ((1 - q) / (1 - p)).log()
    return torch.where(side == 1, up, down)[:, None], (-p * up - (1 - p) * down)[:, None]


def _normal(shape: tuple[int, ...] | torch.Size, generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _with_last(level: Tensor, mass: float) -> Tensor:
    """The last token's probability set to `mass`, the others' scaled."""
    rest = level[..., :-1].log_softmax(-1) + math.log1p(-mass)
    return torch.cat([rest, torch.full_like(level[..., :1], math.log(mass))], dim=-1)

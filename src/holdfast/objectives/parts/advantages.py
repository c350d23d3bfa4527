"""Advantage estimators: rewards and groups in, one number per response token out."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holdfast.errors import DataError
from holdfast.objectives.parts.part import Part, require


class Advantage(Part, family="advantage", abstract=True):
    """Turns the rewards of B sequences in groups (the samples of one prompt) into advantages."""

    def estimate(
        self,
        rewards: Float[Tensor, " B"],
        group_ids: Int[Tensor, " B"],
        mask: Bool[Tensor, "B T"],
        values: Float[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, " B"] | Float[Tensor, "B T"]:
        """Advantages, per sequence or per token; zero where `mask` is False in the latter case."""
        raise NotImplementedError


@dataclass(frozen=True)
class Group(Advantage):
    """A_i = (R_i − baseline) / scale within its group.

    baseline "mean": the group's mean (GRPO, arXiv 2402.03300); "leave_one_out": the mean of the others (RLOO,
    arXiv 2402.14740; 0 in a group of one). scale "std": sample standard deviation + epsilon (GRPO); "none" (Dr.GRPO,
    arXiv 2503.20783); "mean": the group's mean, which for 0/1 rewards makes the gradient that of maximum likelihood
    (MaxRL, arXiv 2602.02710; 0 where the mean is 0); "batch_std": the standard deviation of the whole step's rewards.
    """

    baseline: Literal["mean", "leave_one_out"] = "mean"
    scale: Literal["std", "none", "mean", "batch_std"] = "std"
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        require(self, "epsilon", self.epsilon >= 0, "at least 0")

    def estimate(
        self,
        rewards: Float[Tensor, " B"],
        group_ids: Int[Tensor, " B"],
        mask: Bool[Tensor, "B T"],
        values: Float[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, " B"]:
        mean, std, size = group_moments(rewards, group_ids)
        centred = rewards - mean
        # A group whose rewards are all equal has exactly zero advantage: the mean's rounding error must not be scaled.
        centred = torch.where(std > 0, centred, 0)
        if self.baseline == "leave_one_out":
            centred = centred * torch.where(size > 1, size / (size - 1).clamp(min=1), 0)
        if self.scale == "std":
            return centred / (std + self.epsilon).clamp(min=1e-30)
        if self.scale == "batch_std":
            return centred / (rewards.std() + self.epsilon).clamp(min=1e-30) if len(rewards) > 1 else centred
        if self.scale == "mean":
            return torch.where(mean > 0, centred / mean.clamp(min=1e-30), 0)
        return centred

    def formula(self) -> str:
        baseline = "mean(R)" if self.baseline == "mean" else "mean of the others' R"
        scales = {"none": "", "mean": "/mean(R)", "std": f"/(std(R) + {self.epsilon:g})"}
        scale = scales.get(self.scale, f"/(std(R of the step) + {self.epsilon:g})")
        return f"A = (R − {baseline}){scale}"


def group_moments(
    rewards: Float[Tensor, " B"], group_ids: Int[Tensor, " B"]
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Mean, sample standard deviation (0 in a group of one or of equal rewards) and size of each sequence's group."""
    same = (group_ids[:, None] == group_ids[None, :]).to(rewards.dtype)
    size = same.sum(dim=-1)
    mean = same @ rewards / size
    spread = torch.where(same.bool(), rewards[None, :], rewards[:, None]) - rewards[:, None]
    equal = (spread == 0).all(dim=-1)
    variance = (same * (rewards[None, :] - mean[:, None]).square()).sum(dim=-1) / (size - 1).clamp(min=1)
    return mean, torch.where(equal, 0, variance.sqrt()), size


@dataclass(frozen=True)
class Raw(Advantage):
    """A_i = R_i − baseline, a constant (REINFORCE, Williams 1992)."""

    baseline: float = 0.0

    def estimate(
        self,
        rewards: Float[Tensor, " B"],
        group_ids: Int[Tensor, " B"],
        mask: Bool[Tensor, "B T"],
        values: Float[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, " B"]:
        return rewards - self.baseline

    def formula(self) -> str:
        return "A = R" if self.baseline == 0 else f"A = R − {self.baseline:g}"


@dataclass(frozen=True)
class Whiten(Advantage):
    """A_it = (γ^(n_i−t) R_i − mean) / (std + epsilon), moments over every response token of the step.

    REINFORCE++ (arXiv 2501.03262): the return to go of an outcome reward, whitened over the batch.
    """

    gamma: float = 1.0
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        require(self, "gamma", 0 < self.gamma <= 1, "in (0, 1]")

    def estimate(
        self,
        rewards: Float[Tensor, " B"],
        group_ids: Int[Tensor, " B"],
        mask: Bool[Tensor, "B T"],
        values: Float[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T"]:
        left = mask.sum(dim=-1, keepdim=True) - mask.long().cumsum(dim=-1)
        return whiten(rewards[:, None] * self.gamma ** left.to(rewards.dtype), mask, self.epsilon)

    def formula(self) -> str:
        return f"A = whiten({'' if self.gamma == 1 else f'{self.gamma:g}^(n−t)·'}R) over the step's tokens"


@dataclass(frozen=True)
class Gae(Advantage):
    """A_t = Σ_l (γλ)^l δ_(t+l), δ_t = r_t + γ V_(t+1) − V_t, with the outcome reward at the last response token.

    Generalised advantage estimation (arXiv 1506.02438), whitened over the step's tokens if `whitened`. Tokens
    outside the response mask (tool output) are stepped over: t+1 is the next token that the policy sampled.
    """

    gamma: float = 1.0
    lam: float = 0.95
    whitened: bool = True

    def __post_init__(self) -> None:
        require(self, "gamma", 0 < self.gamma <= 1, "in (0, 1]")
        require(self, "lam", 0 <= self.lam <= 1, "in [0, 1]")

    def estimate(
        self,
        rewards: Float[Tensor, " B"],
        group_ids: Int[Tensor, " B"],
        mask: Bool[Tensor, "B T"],
        values: Float[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T"]:
        if values is None:
            raise DataError("advantage 'gae' needs values [B, T] of a value head: pass estimate_advantages(values=...)")
        advantages = torch.zeros_like(values)
        following = torch.zeros_like(rewards)
        carried = torch.zeros_like(rewards)
        pending = rewards
        for t in reversed(range(mask.shape[1])):
            here = mask[:, t]
            delta = pending + self.gamma * following - values[:, t]
            carried = torch.where(here, delta + self.gamma * self.lam * carried, carried)
            following = torch.where(here, values[:, t], following)
            pending = torch.where(here, 0, pending)
            advantages[:, t] = torch.where(here, carried, 0)
        return whiten(advantages, mask) if self.whitened else advantages

    def formula(self) -> str:
        return f"A = {'whitened ' if self.whitened else ''}GAE(γ = {self.gamma:g}, λ = {self.lam:g})"


def whiten(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], epsilon: float = 1e-8) -> Float[Tensor, "B T"]:
    """(x − mean)/(std + epsilon) over the masked-in tokens, sample standard deviation; zero elsewhere."""
    count = mask.sum()
    kept = torch.where(mask, values, 0)
    centred = torch.where(mask, kept - kept.sum() / count.clamp(min=1), 0)
    deviation = (centred.square().sum() / (count - 1).clamp(min=1)).sqrt()
    return centred / (deviation + epsilon)

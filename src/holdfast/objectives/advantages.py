"""Advantage estimators: rewards and groups in, one number per response token out."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holdfast.objectives.part import Part, require


class Advantage(Part, family="advantage", abstract=True):
    """Turns the rewards of B sequences in groups (the samples of one prompt) into advantages."""

    def estimate(
        self, rewards: Float[Tensor, " B"], group_ids: Int[Tensor, " B"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, " B"] | Float[Tensor, "B T"]:
        """Advantages, per sequence or per token; zero where `mask` is False in the latter case."""
        raise NotImplementedError


@dataclass(frozen=True)
class Group(Advantage):
    """A_i = (R_i − baseline) / scale within its group.

    baseline "mean": the group's mean (GRPO, arXiv 2402.03300); "leave_one_out": the mean of the others (RLOO,
    arXiv 2402.14740; 0 in a group of one). scale "std": sample standard deviation + epsilon (GRPO); "none" (Dr.GRPO,
    arXiv 2503.20783); "mean": the group's mean, which for 0/1 rewards makes the gradient that of maximum likelihood
    (MaxRL, arXiv 2602.02710; 0 where the mean is 0).
    """

    baseline: Literal["mean", "leave_one_out"] = "mean"
    scale: Literal["std", "none", "mean"] = "std"
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        require(self, "epsilon", self.epsilon >= 0, "at least 0")

    def estimate(
        self, rewards: Float[Tensor, " B"], group_ids: Int[Tensor, " B"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, " B"]:
        mean, std, size = group_moments(rewards, group_ids)
        centred = rewards - mean
        # A group whose rewards are all equal has exactly zero advantage: the mean's rounding error must not be scaled.
        centred = torch.where(std > 0, centred, 0)
        if self.baseline == "leave_one_out":
            centred = centred * torch.where(size > 1, size / (size - 1).clamp(min=1), 0)
        if self.scale == "std":
            return centred / (std + self.epsilon)
        if self.scale == "mean":
            return torch.where(mean > 0, centred / mean.clamp(min=1e-30), 0)
        return centred

    def formula(self) -> str:
        baseline = "mean(R)" if self.baseline == "mean" else "mean of the others' R"
        scale = {"std": f"/(std(R) + {self.epsilon:g})", "none": "", "mean": "/mean(R)"}[self.scale]
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

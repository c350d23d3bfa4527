"""Advantage estimators: rewards and groups in, one number per response token out."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holdfast.core.ratios import log_ratio
from holdfast.errors import DataError
from holdfast.objectives.parts.part import Part, require
from holdfast.objectives.parts.terms import Terms


class Advantage(Part, family="advantage", abstract=True):
    """Turns the rewards of B sequences in groups (the samples of one prompt) into advantages.

    `values` are a value head's, `score_norms` are 1 − 2 p_t + Σ_v p_v² of each sampled token: ‖∇_z log p_t‖².
    """

    beside: ClassVar[str] = ""
    """The argument of `estimate` that it cannot do without, besides rewards and groups."""

    def estimate(
        self,
        rewards: Float[Tensor, " B"],
        group_ids: Int[Tensor, " B"],
        mask: Bool[Tensor, "B T"],
        values: Float[Tensor, "B T"] | None = None,
        score_norms: Float[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, " B"] | Float[Tensor, "B T"]:
        """Advantages, per sequence or per token; zero where `mask` is False in the latter case."""
        raise NotImplementedError

    def in_loss(self, terms: Terms) -> Terms:
        """The terms with the advantages that the loss uses: the batch's own, unless the policy must be known first."""
        return terms


@dataclass(frozen=True)
class Group(Advantage):
    """A_i = (R_i − baseline) / scale within its group.

    baseline "mean": the group's mean (GRPO, arXiv 2402.03300); "leave_one_out": the mean of the others (RLOO,
    arXiv 2402.14740; 0 in a group of one). scale "std": sample standard deviation + epsilon (GRPO); "none" (Dr.GRPO,
    arXiv 2503.20783); "mean": the group's mean, which for 0/1 rewards makes the gradient that of maximum likelihood
    (MaxRL, arXiv 2602.02710; 0 where the mean is 0); "batch_std": the standard deviation of the whole step's rewards.
    scale "sign": +1 above the baseline, −1 below it, 0 at it: rewards read as labels.
    baseline "step_mean" is the mean of the whole step's rewards, for prompts that are sampled once.
    """

    baseline: Literal["mean", "leave_one_out", "step_mean"] = "mean"
    scale: Literal["std", "none", "mean", "batch_std", "sign"] = "std"
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        require(self, "epsilon", self.epsilon >= 0, "at least 0")

    def estimate(
        self,
        rewards: Float[Tensor, " B"],
        group_ids: Int[Tensor, " B"],
        mask: Bool[Tensor, "B T"],
        values: Float[Tensor, "B T"] | None = None,
        score_norms: Float[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, " B"]:
        mean, std, size = group_moments(rewards, group_ids)
        centred = rewards - mean
        # A group whose rewards are all equal has exactly zero advantage: the mean's rounding error must not be scaled.
        centred = torch.where(std > 0, centred, 0) if self.baseline != "step_mean" else rewards - rewards.mean()
        if self.baseline == "leave_one_out":
            centred = centred * torch.where(size > 1, size / (size - 1).clamp(min=1), 0)
        if self.scale == "std":
            return centred / (std + self.epsilon).clamp(min=1e-30)
        if self.scale == "batch_std":
            return centred / (rewards.std() + self.epsilon).clamp(min=1e-30) if len(rewards) > 1 else centred
        if self.scale == "sign":
            return centred.sign()
        if self.scale == "mean":
            return torch.where(mean > 0, centred / mean.clamp(min=1e-30), 0)
        return centred

    def formula(self) -> str:
        baselines = {"mean": "mean(R)", "leave_one_out": "mean of the others' R", "step_mean": "mean(R of the step)"}
        baseline = baselines[self.baseline]
        scales = {"none": "", "mean": "/mean(R)", "std": f"/(std(R) + {self.epsilon:g})"}
        scale = scales.get(self.scale, f"/(std(R of the step) + {self.epsilon:g})")
        return f"A = sign(R − {baseline})" if self.scale == "sign" else f"A = (R − {baseline}){scale}"


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
class Teacher(Advantage):
    """A_t = log teacher − log θ, without a gradient, plus `reward` times the batch's own advantage.

    On-policy distillation: with it E[A ∇log θ] is −∇KL(θ‖teacher), token by token, at the contexts that the student
    reaches. It is made anew in every pass, since it falls to 0 as θ approaches the teacher. `reward` mixes in
    (R − mean(R)) of the group; 0, the default, does not read rewards at all.
    """

    reward: float = 0.0

    def __post_init__(self) -> None:
        require(self, "reward", 0 <= self.reward < math.inf, "at least 0")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"teacher_logprobs"})

    def estimate(
        self,
        rewards: Float[Tensor, " B"],
        group_ids: Int[Tensor, " B"],
        mask: Bool[Tensor, "B T"],
        values: Float[Tensor, "B T"] | None = None,
        score_norms: Float[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, " B"]:
        return rewards - group_moments(rewards, group_ids)[0]

    def in_loss(self, terms: Terms) -> Terms:
        distance = log_ratio(terms.logprobs_of("teacher"), terms.logprobs.detach(), terms.mask)
        advantages = distance + self.reward * terms.advantages if self.reward else distance
        return replace(terms, advantages=advantages, positive=advantages > 0)

    def formula(self) -> str:
        mixed = f" + {self.reward:g}(R − mean(R))" if self.reward else ""
        return f"A_t = sg(log teacher − log θ){mixed}"


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
        score_norms: Float[Tensor, "B T"] | None = None,
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
        score_norms: Float[Tensor, "B T"] | None = None,
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

    beside: ClassVar[str] = "values"
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
        score_norms: Float[Tensor, "B T"] | None = None,
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


@dataclass(frozen=True)
class OptimalToken(Advantage):
    """A_it = R_i − B_t, B_t = Σ_i R_i W_it / (Σ_i W_it + 1e-8) within the group, W_it = Σ_{s≤t} (1 − 2 p_s + Σ_v p_v²).

    Optimal token baseline (arXiv 2602.07078; verl): a baseline per place in the response, in which the responses weigh
    by how much gradient they have gathered up to there. Where no other response of the group has a token at this place
    there is nothing to compare with: A = R, as in verl. Places are columns, so tool output counts as places.
    """

    beside: ClassVar[str] = "score_norms"

    def estimate(
        self,
        rewards: Float[Tensor, " B"],
        group_ids: Int[Tensor, " B"],
        mask: Bool[Tensor, "B T"],
        values: Float[Tensor, "B T"] | None = None,
        score_norms: Float[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T"]:
        if score_norms is None:
            raise DataError(
                "advantage 'optimal_token' needs 1 − 2p + Σp² of every sampled token: pass "
                "estimate_advantages(score_norms=...), with Σp² from lm_head_stats(outputs={'sum_p2'})"
            )
        same = (group_ids[:, None] == group_ids[None, :]).to(rewards.dtype)
        energy = torch.where(mask, score_norms, 0).cumsum(dim=-1) * mask
        baseline = (same @ (rewards[:, None] * energy)) / (same @ energy + 1e-8)
        compared = same @ mask.to(rewards.dtype) > 1
        return torch.where(mask, rewards[:, None] - torch.where(compared, baseline, 0), 0)

    def formula(self) -> str:
        return "A_t = R − Σ R W_t/Σ W_t, W_t = Σ_s≤t (1 − 2p + Σp²)"


def whiten(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], epsilon: float = 1e-8) -> Float[Tensor, "B T"]:
    """(x − mean)/(std + epsilon) over the masked-in tokens, sample standard deviation; zero elsewhere."""
    count = mask.sum()
    kept = torch.where(mask, values, 0)
    centred = torch.where(mask, kept - kept.sum() / count.clamp(min=1), 0)
    deviation = (centred.square().sum() / (count - 1).clamp(min=1)).sqrt()
    return centred / (deviation + epsilon)

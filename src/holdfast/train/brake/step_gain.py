"""What held-out rollouts say to first order of the step that an update took, and how long a step they would take.

No new responses: log-probabilities of the rollouts under the policy before the step and after it. The derivation, and
what of it is proved: docs/theory/certificates.md, [22].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.errors import DataError


@dataclass(frozen=True)
class StepGain:
    """First order and worst curvature of one step; both in units of the reward.

    `gain` G is the estimate of E[A Δ], `error` s its standard error over prompts, `cost` H the estimate of
    E[(J - low) Δ²], `fisher` F that of E[Δ²] (nats², about twice the KL divergence of the step), `informed` the prompts
    within which rewards differ, which alone say anything of G.
    """

    gain: float
    error: float
    cost: float
    fisher: float
    informed: int

    @property
    def speaks(self) -> bool:
        """Whether anything follows: the step moved, and rewards differ within two prompts or more.

        With one such prompt s = |G| whatever it is, and with none G = s = 0.
        """
        return self.informed > 1 and self.fisher > 0

    def lower(self, scale: float, z: float) -> float:
        """c (G - z s) - c² H / 2, the lower bound of what c = `scale` times the step gains; units of the reward."""
        return scale * (self.gain - z * self.error) - scale**2 * self.cost / 2

    def best(self, z: float) -> float:
        """c* = (G - z s)⁺ / H, where `lower` is highest; without a unit, infinite where nothing can be lost."""
        sure = self.gain - z * self.error
        if not sure > 0:
            return 0.0
        return sure / self.cost if self.cost > 0 else math.inf


def step_gain(
    moved: Float[Tensor, " B"],
    log_weight: Float[Tensor, " B"],
    rewards: Float[Tensor, " B"],
    prompts: Int[Tensor, " B"],
    low: float,
) -> StepGain:
    """G, s, H and F of responses whose log-probability the step changed by `moved` = Δ; no reward is below `low`.

    With w = exp(`log_weight`) the importance weight of the policy before the step against the one that sampled (cut by
    the caller), b the mean reward of the prompt's other responses, A = R - b, and m_i = mean_y w A Δ of n prompts:

        G = mean_i m_i        s = sd_i(m_i) / √n        H = mean w (b - low) Δ²        F = mean w Δ²

    Raises:
        DataError: a prompt with a single response, or fewer than two prompts.
    """
    _, prompt = prompts.unique(return_inverse=True)
    sizes = prompt.bincount().double()
    if len(sizes) < 2 or not bool((sizes > 1).all()):
        raise DataError(
            f"{len(sizes)} prompts, of which the smallest has {int(sizes.min()) if len(sizes) else 0} responses: "
            "allowed are two prompts or more, each with two responses or more"
        )

    def over_prompts(values: Float[Tensor, " B"], how: str) -> Float[Tensor, " n"]:
        return torch.zeros_like(sizes).scatter_reduce(0, prompt, values, how, include_self=False)

    reward, moved, weight = rewards.double(), moved.double(), log_weight.double().exp()
    baseline = (over_prompts(reward, "sum")[prompt] - reward) / (sizes - 1)[prompt]
    units = over_prompts(weight * (reward - baseline) * moved, "mean")
    return StepGain(
        gain=float(units.mean()),
        error=float(units.std() / math.sqrt(len(units))),
        cost=float((weight * (baseline - low).clamp(min=0) * moved**2).mean()),
        fisher=float((weight * moved**2).mean()),
        informed=int((over_prompts(reward, "amax") > over_prompts(reward, "amin")).sum()),
    )

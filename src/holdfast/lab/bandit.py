"""A softmax bandit: the smallest policy on which the laws of entropy can be read off exactly.

K arms with mean reward Q, policy π = softmax(z). The policy gradient is taken in expectation, not sampled, so what is
left is the law and not the noise. H is the entropy in nats, J = Σ_a π_a Q_a, A_a = Q_a - J.

Sources: Cui et al., arXiv 2505.22617 (covariance law, Clip-Cov, KL-Cov, R = -a e^H + b); Lei and Baehr,
arXiv 2604.09676 (a constant bonus is biased for ever, sparse covariance control is not).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.errors import ConfigError, nearest

CONTROLS = ("none", "bonus", "annealed", "kl_cov", "clip_cov")


def ladder_arms(arms: int = 50) -> Float[Tensor, " K"]:
    """One best arm worth 1, the others spread evenly over [0, 0.9]: no seed, and a best arm that can be missed."""
    if arms < 2:
        raise ConfigError(f"arms is {arms}, allowed is at least 2")
    return torch.cat([torch.ones(1, dtype=torch.float64), torch.linspace(0.9, 0, arms - 1, dtype=torch.float64)])


def entropy(logits: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape"]:
    """H = -Σ π log π in nats."""
    log_pi = logits.log_softmax(-1)
    return -(log_pi.exp() * log_pi).sum(-1)


def covariance(pi: Float[Tensor, "*shape K"], x: Float[Tensor, "*shape K"], y: Float[Tensor, "*shape K"]) -> Tensor:
    """Cov_{a~π}(x, y) = E[x y] - E[x] E[y], centred before the product."""
    return (pi * (x - (pi * x).sum(-1, keepdim=True)) * (y - (pi * y).sum(-1, keepdim=True))).sum(-1)


@dataclass(frozen=True)
class EntropyChange:
    """What a step of the logits does to the entropy: as it is, by the covariance law, and to second order."""

    actual: Float[Tensor, "*shape"]
    first_order: Float[Tensor, "*shape"]
    second_order: Float[Tensor, "*shape"]


def entropy_change(logits: Float[Tensor, "*shape K"], step: Float[Tensor, "*shape K"]) -> EntropyChange:
    """dH = -Cov_{a~π}(log π, dz), plus ½(-E dc² - E[(log π + H) dc²]), dc = dz - E dz, against the true change."""
    log_pi = logits.log_softmax(-1)
    pi, now = log_pi.exp(), entropy(logits)
    first = -covariance(pi, log_pi, step)
    square = (step - (pi * step).sum(-1, keepdim=True)).square()
    curvature = -(pi * square).sum(-1) - (pi * (log_pi + now[..., None]) * square).sum(-1)
    return EntropyChange(entropy(logits + step) - now, first, first + curvature / 2)


def bonus_gap(values: Float[Tensor, " K"], alpha: float) -> float:
    """max Q - J at the stationary point of J + αH, which is π ∝ e^{Q/α}: what a constant bonus costs for ever.

    At most α log K. ConfigError unless α is above 0.
    """
    if not alpha > 0:
        raise ConfigError(f"alpha is {alpha}, allowed is above 0: without a bonus there is no gap")
    return float(values.max() - ((values / alpha).softmax(-1) * values).sum())


@dataclass(frozen=True)
class Training:
    """One run: expected reward and entropy after every step, step 0 being the start."""

    control: str
    reward: Float[Tensor, " steps"]
    entropy: Float[Tensor, " steps"]

    @property
    def gap(self) -> float:
        """What the last policy still misses of the best arm, for values whose maximum is 1."""
        return 1 - float(self.reward[-1])


def train(
    values: Float[Tensor, " K"],
    control: str,
    *,
    steps: int = 4000,
    rate: float = 1.0,
    alpha: float = 0.1,
    share: float = 0.2,
    beta: float = 20.0,
) -> Training:
    """Gradient ascent on the logits, in expectation, from the uniform policy.

    - none: dz = η π A.
    - bonus: J + αH, dz = η π (A - α (log π + H)).
    - annealed: the same with α/√(1 + k/k₀), k₀ = 10, at step k, so that the fixed point moves to the best arm.
    - kl_cov: the arms of the largest (log π - E log π) A that carry a `share` of the probability pay β k2(old‖π)
      through eight inner steps per rollout; the penalty has no fixed point of its own.
    - clip_cov: those arms lose their gradient altogether.
    ConfigError for an unknown control, and for a β at which the inner steps would overshoot: rate · β · share ≥ 16.
    """
    if control not in CONTROLS:
        raise ConfigError(f"unknown control {control!r}: {nearest(control, CONTROLS)}")
    if control == "kl_cov" and rate * beta * share >= 16:
        raise ConfigError(f"beta is {beta}, allowed is below 16 / (rate · share) = {16 / (rate * share):g}")
    logits = torch.zeros_like(values)
    rewards, entropies = [], []
    for k in range(steps + 1):
        log_pi = logits.log_softmax(-1)
        pi = log_pi.exp()
        now = -(pi * log_pi).sum()
        advantage = values - (pi * values).sum()
        rewards.append((pi * values).sum())
        entropies.append(now)
        if control in ("bonus", "annealed"):
            weight = alpha if control == "bonus" else alpha / (1 + k / 10) ** 0.5
            logits = logits + rate * pi * (advantage - weight * (log_pi + now))
        elif control == "none":
            logits = logits + rate * pi * advantage
        else:
            chosen = _top_share((log_pi + now) * advantage, pi, share)
            update = _kl_cov if control == "kl_cov" else _clip_cov
            logits = update(logits, chosen, advantage, rate, beta)
    return Training(control, torch.stack(rewards), torch.stack(entropies))


@dataclass(frozen=True)
class RewardLaw:
    """R ≈ -a e^H + b: `ceiling` = b - a is the reward that is left when all entropy is spent; r2 is the fit's R²."""

    a: float
    b: float
    r2: float

    @property
    def ceiling(self) -> float:
        return self.b - self.a


def fit_reward_law(entropies: Float[Tensor, " n"], rewards: Float[Tensor, " n"]) -> RewardLaw:
    """Least squares of reward on e^H (arXiv 2505.22617, eq. 2). ConfigError for fewer than three points."""
    if len(rewards) < 3:
        raise ConfigError(f"{len(rewards)} points cannot show a law with two coefficients; at least 3 are needed")
    x, y = entropies.double().exp(), rewards.double()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    offset = y.mean() - slope * x.mean()
    residual = (y - slope * x - offset).square().sum() / (y - y.mean()).square().sum()
    return RewardLaw(a=-float(slope), b=float(offset), r2=1 - float(residual))


def _top_share(score: Tensor, pi: Tensor, share: float) -> Tensor:
    """Per arm, which fraction of it lies in the top `share` of probability mass by score, [K] in [0, 1]."""
    order = score.argsort(descending=True)
    before = pi[order].cumsum(0) - pi[order]
    taken = ((share - before) / pi[order]).clamp(0, 1)
    return torch.empty_like(pi).scatter(0, order, taken)


def _clip_cov(logits: Tensor, chosen: Tensor, advantage: Tensor, rate: float, beta: float) -> Tensor:
    """Ascent on Σ_a π_a (1 - chosen_a) A_a log π_a."""
    pi = logits.softmax(-1)
    gain = pi * (1 - chosen) * advantage
    return logits + rate * (gain - pi * gain.sum())


def _kl_cov(logits: Tensor, chosen: Tensor, advantage: Tensor, rate: float, beta: float) -> Tensor:
    """Eight inner steps on Σ_a π_old,a (ρ_a A_a - β chosen_a ½ log² ρ_a) with the old policy held."""
    old = logits.log_softmax(-1)
    for _ in range(8):
        log_pi = logits.log_softmax(-1)
        log_ratio, pi = log_pi - old, log_pi.exp()
        gain = pi * advantage - old.exp() * beta * chosen * log_ratio
        logits = logits + rate / 8 * (gain - pi * gain.sum())
    return logits

"""Exact errors at horizons that no tree reaches: policies with little state, by dynamic programming and closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.core.divergences import expm1_minus
from holdfast.errors import ConfigError


@dataclass(frozen=True)
class ChainPair:
    """Two policies over K states: the next token is the next state, drawn from a row of `rollout` or `current`.

    Log-probabilities [K, K]; both start in state 0. A state that both leave with probability 0 ends the response.
    """

    rollout: Float[Tensor, "K K"]
    current: Float[Tensor, "K K"]


@dataclass(frozen=True)
class ChainDrift:
    """What a horizon of T tokens costs: exact divergences, and the worst error over rewards of the last state."""

    horizon: int
    error: float
    kl_max: float
    tv_max: float
    chi2_max: float
    mean_kl: Float[Tensor, " T"]
    mean_tv: Float[Tensor, " T"]
    mean_chi2: Float[Tensor, " T"]

    @property
    def seq_kl(self) -> float:
        return float(self.mean_kl.sum())


def measure_chain(pair: ChainPair, horizon: int) -> ChainDrift:
    """Exact drift and error of a chain in O(T K²), T up to millions.

    Carries d_t = P_p(state), q_t = P_q(state) and the surrogate's measure g_t(s) = E_p[1(state = s) Σ_{u≤t} (ρ_u - 1)],
    g_{t+1} = g_t P + d_t (Q - P). For a reward R(last state) the error is Σ_s (q_T - d_T - g_T)(s) R(s); its residual
    e_t = q_t - d_t - g_t obeys e_{t+1} = e_t P + (q_t - d_t)(Q - P), without cancellation. ConfigError below T = 1.
    """
    _check_horizon(horizon)
    p, ratio = pair.rollout.exp(), (pair.current - pair.rollout).nan_to_num(nan=0.0)
    change = p * torch.expm1(ratio)
    kl, tv = (p * expm1_minus(ratio)).sum(-1), 0.5 * change.abs().sum(-1)
    chi2 = (change * torch.expm1(ratio)).sum(-1)
    state = torch.zeros(p.shape[0], dtype=torch.float64)
    state[0] = 1
    shift, error = torch.zeros_like(state), torch.zeros_like(state)  # q_t - d_t and e_t
    states = torch.empty(horizon, p.shape[0], dtype=torch.float64)
    for t in range(horizon):
        states[t] = state
        error = error @ p + shift @ change
        shift = shift @ (p + change) + state @ change
        state = state @ p
    return ChainDrift(
        horizon=horizon,
        error=0.5 * float(error.abs().sum()),
        kl_max=float(kl.max()),
        tv_max=float(tv.max()),
        chi2_max=float(chi2.max()),
        mean_kl=states @ kl,
        mean_tv=states @ tv,
        mean_chi2=states @ chi2,
    )


@dataclass(frozen=True)
class CoinPair:
    """T independent tokens, each 1 with probability `rollout` or `current`: every context drifts by the same amount.

    The number of ones decides both W_T and Σ(ρ - 1), so the worst error over all rewards is a binomial sum. At
    rollout = ½ this is the Pinsker-tight pair, about the worst that a KL per token allows. ConfigError outside (0, 1).
    """

    rollout: float
    current: float

    def __post_init__(self) -> None:
        for name, value in (("rollout", self.rollout), ("current", self.current)):
            if not 0 < value < 1:
                raise ConfigError(f"{name} is {value}, allowed is a probability strictly between 0 and 1")

    @staticmethod
    def of_kl(kl: float) -> CoinPair:
        """The fair rollout coin whose current coin is `kl` nats away: KL = -½ log(1 - 4 ε²). ConfigError below 0."""
        if not 0 < kl < 18:
            raise ConfigError(f"kl is {kl}, allowed is above 0 and below 18 nats, where float64 ends for a fair coin")
        return CoinPair(0.5, 0.5 + 0.5 * math.sqrt(-math.expm1(-2 * kl)))

    @property
    def kl(self) -> float:
        a, b = self.rollout, self.current
        return a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))

    @property
    def tv(self) -> float:
        return abs(self.current - self.rollout)

    @property
    def chi2(self) -> float:
        return self.tv**2 / (self.rollout * (1 - self.rollout))

    def worst_error(self, horizon: int) -> float:
        """max over all rewards in [0, 1] of |J(q) - J(p) - L'| at this horizon, exact."""
        _check_horizon(horizon)
        log_p, log_weight = self._counts(horizon)
        ones = torch.arange(horizon + 1, dtype=torch.float64)
        gain = (self.current - self.rollout) * (ones - horizon * self.rollout) / (self.rollout * (1 - self.rollout))
        p, q = log_p.exp(), (log_p + log_weight).exp()
        weight = torch.where(log_weight.abs() < 1, p * (torch.expm1(log_weight) - gain), q - p - p * gain)
        return 0.5 * float(weight.abs().sum())

    def compensated(self, horizon: int) -> float:
        """E_p[(T KL - k3(W))⁺ + ½ |Σ_t k3(ρ_t) - T KL|], k3(u) = u - 1 - log u: a bound, and the tightest we know.

        `holdfast.core.bounds_measured.compensation` measures the same on rollouts.
        """
        log_p, log_weight = self._counts(horizon)
        one, zero = expm1_minus(self._log_ratios()).tolist()
        ones = torch.arange(horizon + 1, dtype=torch.float64)
        noise = ones * one + (horizon - ones) * zero - horizon * self.kl
        shortfall = (horizon * self.kl - expm1_minus(log_weight)).clamp(min=0)
        return float((log_p.exp() * (shortfall + noise.abs() / 2)).sum())

    def seq_tv(self, horizon: int) -> float:
        """TV between whole responses."""
        log_p, log_weight = self._counts(horizon)
        return 0.5 * float((log_p.exp() - (log_p + log_weight).exp()).abs().sum())

    def _counts(self, horizon: int) -> tuple[Tensor, Tensor]:
        """log P_p(count of ones) and log W_T for that count."""
        a, (one, zero) = self.rollout, self._log_ratios().tolist()
        ones = torch.arange(horizon + 1, dtype=torch.float64)
        zeros = horizon - ones
        choose = math.lgamma(horizon + 1) - torch.lgamma(ones + 1) - torch.lgamma(zeros + 1)
        log_p = choose + ones * math.log(a) + zeros * math.log1p(-a)
        return log_p, ones * one + zeros * zero

    def _log_ratios(self) -> Tensor:
        """log ρ of a one and of a zero."""
        a, b = self.rollout, self.current
        return torch.tensor([math.log(b / a), math.log((1 - b) / (1 - a))], dtype=torch.float64)


def _check_horizon(horizon: int) -> None:
    if horizon < 1:
        raise ConfigError(f"horizon is {horizon}, allowed is at least 1 token")

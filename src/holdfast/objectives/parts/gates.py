"""Gates: what a ratio is turned into before it multiplies the advantage.

A gate f is written in log space, log f(log r), because every pool and clip is simplest there and nothing overflows.
Its slope e(r) = r f'(r) / f(r) = d log f / d log r is what the gradient sees: ∇f = f · e · ∇log π. `positive` is
True where the advantage is above zero. Sign-dependent gates are how PPO's pessimistic minimum becomes one function:
min(r A, clip(r) A) = f(r) A with f clamped from above where A > 0 and from below where A < 0.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from holdfast.objectives.parts.part import Part, require, require_bounds, require_positive


class Gate(Part, family="gate", abstract=True):
    """A function of the log-ratio; every subclass is one row of the table of gates."""

    score_only: ClassVar[bool] = False
    """True for gates whose own derivative is not the update they stand for: they need carrier "score"."""

    def log_value(self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]) -> Float[Tensor, "B _"]:
        """log f at this log-ratio: [B, T] for tokens, [B, 1] for a pooled sequence; the two arguments broadcast."""
        raise NotImplementedError

    def slope(self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]) -> Float[Tensor, "B _"]:
        """e(r) = d log f / d log r; zero where the gate is flat."""
        raise NotImplementedError

    def evaluate(
        self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B _"], Float[Tensor, "B _"], Bool[Tensor, "..."]]:
        """(log f, slope, True where the gate limits the ratio); a soft gate never does, which is one False for all."""
        never = torch.zeros((), dtype=torch.bool, device=log_ratio.device)
        return self.log_value(log_ratio, positive), self.slope(log_ratio, positive), never

    def acts_where_old(self, denominator: str) -> bool:
        return denominator != "old"


class HardGate(Gate, abstract=True):
    """A gate that clamps the log-ratio: slope 1 inside, 0 outside."""

    def slope(self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]) -> Float[Tensor, "B _"]:
        return self.evaluate(log_ratio, positive)[1]

    def evaluate(
        self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B _"], Float[Tensor, "B _"], Bool[Tensor, "..."]]:
        value = self.log_value(log_ratio, positive)
        inside = value == log_ratio
        return value, inside.to(value.dtype), ~inside


@dataclass(frozen=True)
class Identity(Gate):
    """f(r) = r: plain importance sampling."""

    def log_value(self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]) -> Float[Tensor, "B _"]:
        return log_ratio

    def slope(self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]) -> Float[Tensor, "B _"]:
        return torch.ones_like(log_ratio)

    def acts_where_old(self, denominator: str) -> bool:
        return True

    def formula(self) -> str:
        return "f(r) = r"


@dataclass(frozen=True)
class One(Gate):
    """f(r) = 1: no importance weight (REINFORCE); needs the score carrier, since it has no gradient of its own."""

    score_only: ClassVar[bool] = True

    def log_value(self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]) -> Float[Tensor, "B _"]:
        return torch.zeros_like(log_ratio)

    def slope(self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]) -> Float[Tensor, "B _"]:
        return torch.zeros_like(log_ratio)

    def acts_where_old(self, denominator: str) -> bool:
        return True

    def formula(self) -> str:
        return "f(r) = 1"


@dataclass(frozen=True)
class Clip(HardGate):
    """f(r) = min(r, 1+high) where A > 0; max(r, 1−low) where A < 0, at most `dual` there.

    PPO (Schulman et al., arXiv 1707.06347, eq. 7); `dual` is the dual clip of Ye et al. (arXiv 1912.09729),
    off when None. `high` above `low` is DAPO's clip-higher (arXiv 2503.14476, eq. 8).
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None

    def __post_init__(self) -> None:
        require(self, "low", 0 <= self.low <= 1, "in [0, 1]")
        require(self, "high", 0 <= self.high < math.inf, "at least 0")
        if self.dual is not None:
            require(self, "dual", 1 < self.dual < math.inf, "above 1 (or left out)")

    def log_value(self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]) -> Float[Tensor, "B _"]:
        low = math.log1p(-self.low) if self.low < 1 else -math.inf
        dual = None if self.dual is None else math.log(self.dual)
        return torch.where(positive, log_ratio.clamp(max=math.log1p(self.high)), log_ratio.clamp(low, dual))

    def formula(self) -> str:
        dual = "" if self.dual is None else f", at most {self.dual:g}"
        return f"f(r) = min(r, {1 + self.high:g}) if A > 0 else max(r, {1 - self.low:g}){dual}"


@dataclass(frozen=True)
class LogClip(HardGate):
    """log f = min(log r, high) where A > 0; max(log r, −low) where A < 0.

    GMPO (Zhao et al., arXiv 2507.20673, eq. 4): on each token inside the geometric mean.
    """

    low: float = 0.4
    high: float = 0.4

    def __post_init__(self) -> None:
        require(self, "low", 0 <= self.low < math.inf, "at least 0")
        require(self, "high", 0 <= self.high < math.inf, "at least 0")

    def log_value(self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]) -> Float[Tensor, "B _"]:
        return torch.where(positive, log_ratio.clamp(max=self.high), log_ratio.clamp(min=-self.low))

    def formula(self) -> str:
        return f"log f = min(log r, {self.high:g}) if A > 0 else max(log r, −{self.low:g})"


@dataclass(frozen=True)
class Box(HardGate):
    """f(r) = r limited to [low, high], whatever the sign of A; None leaves a side open.

    Two namings are in use for the same cap: absolute (CISPO's released code and TRL: high = 5.0 means r <= 5) and
    relative to 1 (verl: high = .28 means r <= 1.28). `relative` says which: then the interval is [1−low, 1+high].
    `low_negative`, `high_negative` give other limits where A <= 0 (TOPR: [1, 1] and [0, 1]).
    """

    low: float | None = None
    high: float | None = 5.0
    low_negative: float | None = None
    high_negative: float | None = None
    relative: bool = False

    def __post_init__(self) -> None:
        if self.relative:
            if self.low is not None:
                require(self, "low", 0 <= self.low <= 1, "in [0, 1] when relative")
            require(self, "high", self.high is None or self.high >= 0, "at least 0 when relative")
        elif self.low is not None and self.low == self.high:
            require(self, "low", self.low > 0, "above 0")
        else:
            require_bounds(self, "low", "high")
        require_bounds(self, "low_negative", "high_negative")

    def log_value(self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]) -> Float[Tensor, "B _"]:
        low, high = _log(self._limits()[0]), _log(self._limits()[1])
        if self.low_negative is None and self.high_negative is None:
            return log_ratio.clamp(low, high) if (low, high) != (None, None) else log_ratio
        other = log_ratio.clamp(_log(self.low_negative), _log(self.high_negative))
        return torch.where(positive, log_ratio.clamp(low, high), other)

    def _limits(self) -> tuple[float | None, float | None]:
        if not self.relative:
            return self.low, self.high
        return None if self.low is None else 1 - self.low, None if self.high is None else 1 + self.high

    def formula(self) -> str:
        low, high = self._limits()
        text = f"f(r) = r limited to [{low or 0:g}, {'∞' if high is None else f'{high:g}'}]"
        if self.low_negative is None and self.high_negative is None:
            return text
        top = "∞" if self.high_negative is None else f"{self.high_negative:g}"
        return f"{text} if A > 0 else [{self.low_negative or 0:g}, {top}]"


@dataclass(frozen=True)
class Flip(Gate):
    """A > 0: f(r) = min(1/r, cap), 0 above 1+high; A < 0: f(r) = min(r, cap), 0 below 1−low.

    ASPO (arXiv 2510.06062): on tokens of good answers the weight is turned over, so that those the policy has come to
    neglect gain and those it already favours do not. PPO's hard clip comes first, the cap keeps its gradient. The paper
    publishes no cap; 3 is its released code's. Carrier "score" only: differentiating 1/r would reverse the update.
    """

    low: float = 0.2
    high: float = 0.2
    cap: float = 3.0
    score_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self, "low", 0 <= self.low < 1, "in [0, 1)")
        require(self, "high", 0 <= self.high < math.inf, "at least 0")
        require(self, "cap", 1 <= self.cap < math.inf, "at least 1")

    def log_value(self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]) -> Float[Tensor, "B _"]:
        inside = torch.where(positive, log_ratio <= math.log1p(self.high), log_ratio >= math.log1p(-self.low))
        capped = torch.where(positive, -log_ratio, log_ratio).clamp(max=math.log(self.cap))
        return torch.where(inside, capped, -torch.inf)

    def slope(self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]) -> Float[Tensor, "B _"]:
        return self.evaluate(log_ratio, positive)[1]

    def evaluate(
        self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B _"], Float[Tensor, "B _"], Bool[Tensor, "..."]]:
        value = self.log_value(log_ratio, positive)
        inside = value == torch.where(positive, -log_ratio, log_ratio)
        return value, torch.where(inside, _by_sign(positive, -1.0, 1.0, value), 0), ~inside

    def formula(self) -> str:
        return (
            f"f(r) = min(1/r, {self.cap:g})·1[r ≤ {1 + self.high:g}] if A > 0 "
            f"else min(r, {self.cap:g})·1[r ≥ {1 - self.low:g}]"
        )


@dataclass(frozen=True)
class SoftGate(Gate, abstract=True):
    """A smooth gate with f'(1) = 1 and a temperature per sign of the advantage (tau_pos where A > 0)."""

    tau_pos: float = 1.0
    tau_neg: float = 1.05

    def __post_init__(self) -> None:
        require_positive(self, "tau_pos", "tau_neg")

    def _tau(self, positive: Tensor, like: Tensor) -> Tensor:
        return _by_sign(positive, self.tau_pos, self.tau_neg, like)

    def _numbers(self) -> str:
        return f"τ = {self.tau_pos:g} if A > 0 else {self.tau_neg:g}"


@dataclass(frozen=True)
class Sigmoid(SoftGate):
    """f(r) = (4/τ) σ(τ(r−1)); f(1) = 2/τ; slope e(r) = τ r (1 − σ(τ(r−1))).

    SAPO (Gao et al., arXiv 2511.20347) on tokens; SSPO v1 inside the geometric mean.
    """

    def log_value(self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]) -> Float[Tensor, "B _"]:
        tau = self._tau(positive, log_ratio)
        return (4 / tau).log() + logsigmoid(tau * torch.expm1(log_ratio))

    def slope(self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]) -> Float[Tensor, "B _"]:
        tau = self._tau(positive, log_ratio)
        return tau * torch.exp(log_ratio) * torch.sigmoid(-tau * torch.expm1(log_ratio))

    def formula(self) -> str:
        return f"f(r) = (4/τ) σ(τ(r−1)), {self._numbers()}"


@dataclass(frozen=True)
class LogArctan(SoftGate):
    """f(r) = exp(atan(τ log r)/τ); f(1) = 1; slope e(r) = 1/(1 + τ² log² r); range e^(±π/2τ); symmetric in log r.

    SSPO (Glazyrina et al., arXiv 2602.19327): the later versions name an arctan of the log-ratio as their default.
    """

    def log_value(self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]) -> Float[Tensor, "B _"]:
        tau = self._tau(positive, log_ratio)
        return torch.atan(tau * log_ratio) / tau

    def slope(self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]) -> Float[Tensor, "B _"]:
        return 1 / (1 + (self._tau(positive, log_ratio) * log_ratio).square())

    def formula(self) -> str:
        return f"f(r) = exp(atan(τ log r)/τ), {self._numbers()}"


@dataclass(frozen=True)
class RatioSoftGate(SoftGate, abstract=True):
    """A smooth gate of the form f(r) = 1 + h(τ(r−1))/τ with h'(0) = 1 and h > −τ, so that f stays above 0."""

    def _shape(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _shape_slope(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def log_value(self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]) -> Float[Tensor, "B _"]:
        tau = self._tau(positive, log_ratio)
        return torch.log1p(self._shape(tau * torch.expm1(log_ratio)) / tau)

    def slope(self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]) -> Float[Tensor, "B _"]:
        tau = self._tau(positive, log_ratio)
        x = tau * torch.expm1(log_ratio)
        return torch.exp(log_ratio) * self._shape_slope(x) / (1 + self._shape(x) / tau)


@dataclass(frozen=True)
class Arctan(RatioSoftGate):
    """f(r) = 1 + atan(τ(r−1))/τ (SSPO, arXiv 2602.19327)."""

    def _shape(self, x: Tensor) -> Tensor:
        return torch.atan(x)

    def _shape_slope(self, x: Tensor) -> Tensor:
        return 1 / (1 + x.square())

    def formula(self) -> str:
        return f"f(r) = 1 + atan(τ(r−1))/τ, {self._numbers()}"


@dataclass(frozen=True)
class Erf(RatioSoftGate):
    """f(r) = 1 + (√π/2τ) erf(τ(r−1)) (SSPO, arXiv 2602.19327)."""

    def _shape(self, x: Tensor) -> Tensor:
        return math.sqrt(math.pi) / 2 * torch.erf(x)

    def _shape_slope(self, x: Tensor) -> Tensor:
        return torch.exp(-x.square())

    def formula(self) -> str:
        return f"f(r) = 1 + (√π/2τ) erf(τ(r−1)), {self._numbers()}"


@dataclass(frozen=True)
class Softsign(RatioSoftGate):
    """f(r) = 1 + (r−1)/(1 + τ|r−1|) (SSPO, arXiv 2602.19327)."""

    def _shape(self, x: Tensor) -> Tensor:
        return x / (1 + x.abs())

    def _shape_slope(self, x: Tensor) -> Tensor:
        return (1 + x.abs()).square().reciprocal()

    def formula(self) -> str:
        return f"f(r) = 1 + (r−1)/(1 + τ|r−1|), {self._numbers()}"


@dataclass(frozen=True)
class Gamma(Gate):
    """φ(W) = W^k e^(λ(1−W)), normalised to φ(1) = 1; slope k − λW.

    VESPO (arXiv 2602.10693): W the sequence's importance weight; (k, λ) = (2, 3) where A >= 0 and (3, 2) where A < 0.
    """

    k_pos: float = 2.0
    lambda_pos: float = 3.0
    k_neg: float = 3.0
    lambda_neg: float = 2.0

    def __post_init__(self) -> None:
        require_positive(self, "k_pos", "lambda_pos", "k_neg", "lambda_neg")

    def log_value(self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]) -> Float[Tensor, "B _"]:
        k, rate = self._shape(positive, log_ratio)
        return k * log_ratio - rate * torch.expm1(log_ratio)

    def slope(self, log_ratio: Float[Tensor, "B S"], positive: Bool[Tensor, "B T"]) -> Float[Tensor, "B _"]:
        k, rate = self._shape(positive, log_ratio)
        return k - rate * torch.exp(log_ratio)

    def _shape(self, positive: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        k = _by_sign(positive, self.k_pos, self.k_neg, like)
        return k, _by_sign(positive, self.lambda_pos, self.lambda_neg, like)

    def formula(self) -> str:
        return (
            f"φ(W) = W^k e^(λ(1−W)), (k, λ) = ({self.k_pos:g}, {self.lambda_pos:g}) if A > 0 "
            f"else ({self.k_neg:g}, {self.lambda_neg:g})"
        )


def _log(limit: float | None) -> float | None:
    """log of a limit; 0 is no limit in log space."""
    return None if limit is None or limit == 0 else math.log(limit)


def _by_sign(positive: Tensor, first: float, second: float, like: Tensor) -> Tensor:
    """`first` where positive, else `second`, in the dtype of `like` (two bare floats would come out as float32)."""
    return torch.where(positive, like.new_full((), first), like.new_full((), second))

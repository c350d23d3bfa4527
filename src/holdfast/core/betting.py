"""A test of improvement that may be looked at after every rollout, right for every number of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.errors import ConfigError, DataError

STAKES = (0.01, 0.03, 0.1, 0.3, 0.6, 0.9)
"""λ_j: small ones win on small gains, large ones early on large gains; the mean over them is as good within log 6."""
_HALVINGS = 50
_ROUNDING = 1e-9


def _none() -> Float[Tensor, " 0"]:
    return torch.zeros(0, dtype=torch.float64)


@dataclass(frozen=True)
class EProcess:
    """E_n = mean_j Π_{i≤n} (1 + λ_j X'_i): if no gain is real, it ever reaches 1/α with probability α at most. [19]

    X'_i ≥ -1 are prompts in the order of their arrival, each the mean of `improvement.clipped_gain` over the prompt's
    rollouts. Given everything before it, each must have a mean of at most the gain of its own update: prompts drawn
    afresh, a policy that has not seen them. So one process may run over the steps of a training run, before each step's
    update, and be looked at whenever one likes. The same holds of any other units from -1 on whose means are at most 0
    under the hypothesis: `train.brake.certificate` tests "the update does no harm".

    >>> test = EProcess()
    >>> test = test.update(torch.full((40,), 0.2))  # 40 prompts, each worth .2
    >>> test.certified, test.certified_at
    (True, 28)

    Waudby-Smith and Ramdas 2024 (betting), with a fixed mixture of stakes instead of predicted ones.
    """

    level: float = 0.95
    units: Float[Tensor, " n"] = field(default_factory=_none)

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ConfigError(f"confidence level is {self.level}, allowed is between 0 and 1, both excluded: say 0.95")

    def update(self, units: Float[Tensor, " m"]) -> EProcess:
        """The process after `units` more prompts. DataError for values below -1 or not finite."""
        new = units.detach().cpu().double()
        if new.ndim != 1 or not bool((new.isfinite() & (new >= -1 - _ROUNDING)).all()):
            raise DataError(
                f"units of shape {list(new.shape)} reach down to {new.min().item() if new.numel() else math.nan:g}, "
                "allowed is [m], finite, from -1 on: give the prompts' means of clipped_gain, with rewards in [0, 1]"
            )
        return replace(self, units=torch.cat([self.units, new.clamp(min=-1)]))

    def log_e(self, gain: float = 0.0) -> Float[Tensor, " n"]:
        """log E_n after each prompt, against "the gain is at most `gain`": Π (1 + λ_j ((1 + X'_i)/(1 + gain) - 1)).

        At gain 0 this is Π (1 + λ_j X'_i). It falls as `gain` rises. A `gain` fixed beforehand is also tested where
        the policies change along the way: E_n ≥ 1/α then says that the mean of the gains so far is above it.
        """
        if not gain > -1:
            raise ConfigError(f"gain is {gain}, allowed is above -1: rewards lie in [0, 1], no policy can lose more")
        stakes = torch.tensor(STAKES, dtype=torch.float64)
        wealth = torch.log1p(stakes * ((1 + self.units) / (1 + gain) - 1)[:, None]).cumsum(0)
        return wealth.logsumexp(-1) - math.log(len(STAKES))

    @property
    def e_value(self) -> float:
        """E_n now: the odds against "no gain"; 1 before any prompt."""
        return math.exp(min(self.log_e()[-1].item(), 700.0)) if len(self.units) else 1.0

    @property
    def highest(self) -> float:
        """The highest E_n so far, which a verdict rests on; 1 before any prompt."""
        return math.exp(min(self.log_e().max().item(), 700.0)) if len(self.units) else 1.0

    @property
    def certified_at(self) -> int | None:
        """After how many prompts E_n first reached 1/α; None if it never has."""
        reached = (self.log_e() >= -math.log1p(-self.level)).nonzero()
        return None if not len(reached) else int(reached[0, 0]) + 1

    @property
    def certified(self) -> bool:
        """True once E_n has reached 1/α, now or earlier."""
        return self.certified_at is not None

    def lower(self) -> float:
        """The lower limit of one update's gain, valid at all times together; -1 where nothing is known.

        The largest gain that the process has ever rejected. It speaks of one pair of policies; along a run in which
        they change, ask `log_e(gain)` for a gain fixed beforehand.
        """
        wanted = -math.log1p(-self.level)
        if not len(self.units):
            return -1.0
        low, high = -1.0, max(self.units.max().item(), 0.0)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            rejected = middle > -1 and bool((self.log_e(middle) >= wanted).any())
            low, high = (middle, high) if rejected else (low, middle)
        return low

    def prompts_needed(self) -> int | None:
        """About how many prompts like these it takes: log(6/α) over the best stake's growth; None if none grows."""
        if not len(self.units):
            return None
        growth = torch.log1p(torch.tensor(STAKES, dtype=torch.float64) * self.units[:, None]).mean(0).max().item()
        return math.ceil((math.log(len(STAKES)) - math.log1p(-self.level)) / growth) if growth > 0 else None


def fewest_units(level: float, highest: float) -> int:
    """The least number of prompts that can certify anything where none is worth more than `highest`.

    The smallest n with mean_j (1 + λ_j highest)^n ≥ 1/α: 7 at 95 % where every prompt is worth 1.

    >>> [fewest_units(0.95, highest) for highest in (9, 1)]
    [2, 7]
    """
    if not (0 < level < 1 and highest > 0):
        raise ConfigError(f"level {level} and highest {highest}: allowed are levels between 0 and 1, highest above 0")
    number, wanted = 1, 1 / (1 - level)
    while sum((1 + stake * highest) ** number for stake in STAKES) / len(STAKES) < wanted:
        number += 1
    return number

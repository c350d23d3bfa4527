"""One-sided confidence limits for means over independent units (prompts, or rollouts where there is one per prompt)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.errors import ConfigError, DataError

_CHUNK = 1 << 22


@dataclass(frozen=True)
class Limits:
    """A mean and its limits, each of which holds with the probability asked for."""

    estimate: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Confidence:
    """How sure a certificate must be, and by which argument.

    `bootstrap` (studentised) makes no assumption about the range and is right asymptotically, in the number of units.
    `bernstein` (Maurer and Pontil 2009, theorem 4) holds for any number of units, if no unit's drift sums (|Σ(ρ - 1)|,
    Σ KL, |Σ(k3 - KL)|, path) exceed `ceiling`; a sample above it is a DataError. Its limits are several times wider.
    """

    level: float = 0.95
    method: Literal["bootstrap", "bernstein"] = "bootstrap"
    ceiling: float | None = None
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ConfigError(f"confidence level is {self.level}, allowed is between 0 and 1, both excluded: say 0.95")
        if self.method not in ("bootstrap", "bernstein"):
            raise ConfigError(f"confidence method is {self.method!r}, allowed are 'bootstrap' and 'bernstein'")
        if (self.method == "bernstein") != (self.ceiling is not None):
            raise ConfigError(
                f"ceiling is {self.ceiling} with method {self.method!r}: 'bernstein' needs it, the most that the drift "
                "of one rollout can sum to; 'bootstrap' takes none"
            )
        if self.ceiling is not None and not 0 < self.ceiling < math.inf:
            raise ConfigError(f"ceiling is {self.ceiling}, allowed are finite numbers above 0")
        if self.resamples < 200:
            raise ConfigError(f"resamples is {self.resamples}, allowed are 200 and more")

    def limits(
        self,
        units: Mapping[str, Float[Tensor, " n"]],
        shared_by: int,
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> dict[str, Limits]:
        """Limits for the mean of each quantity, at error (1 - level) / shared_by each, so that all hold together.

        For `bernstein` a unit lies in [0, ceiling], or in its `ranges`, given in ceilings. A sample without any spread
        (say, no drift at all) gives `bootstrap` nothing to work with: its limits are the mean.
        """
        error = (1 - self.level) / shared_by
        values = {name: value.double() for name, value in units.items()}
        for value in values.values():
            if len(value) < 2:
                raise DataError(
                    f"{len(value)} independent prompts or rollouts: limits need at least 2, and serve from 30"
                )
        if self.ceiling is None:
            return self._bootstrap(values, error) if values else {}
        found = {}
        for name, value in values.items():
            low, high = (end * self.ceiling for end in (ranges or {}).get(name, (0.0, 1.0)))
            if not bool(((value >= low) & (value <= high)).all()):
                raise DataError(
                    f"{name} of one rollout is {value.abs().max().item():g}, outside the range that the ceiling "
                    f"{self.ceiling:g} allows: raise it to what no rollout can exceed, or use method='bootstrap'"
                )
            found[name] = _bernstein(value, high - low, error)
        return found

    def _bootstrap(self, units: Mapping[str, Tensor], error: float) -> dict[str, Limits]:
        """Studentised bootstrap: (mean - mean*) / se* of resampled units stands for (true mean - mean) / se."""
        columns = torch.stack(list(units.values()), dim=-1)
        count, means = len(columns), columns.mean(0)
        centred = columns - means
        generator = torch.Generator().manual_seed(self.seed)
        rows = max(1, _CHUNK // count)
        parts = []
        for start in range(0, self.resamples, rows):
            shape = (min(rows, self.resamples - start), count)
            drawn = torch.randint(count, shape, generator=generator)
            times = torch.zeros(shape, dtype=torch.float64).scatter_add_(
                1, drawn, torch.ones(shape, dtype=torch.float64)
            )
            shift = times @ centred / count
            variance = (times @ centred.square() / count - shift.square()).clamp(min=0) / (count - 1)
            parts.append((shift / variance.sqrt()).nan_to_num(0.0, torch.inf, -torch.inf))
        studentised = torch.cat(parts)
        low = studentised.quantile(error, dim=0, interpolation="lower")
        high = studentised.quantile(1 - error, dim=0, interpolation="higher")
        scale = columns.std(0) / math.sqrt(count)
        limits = {}
        for i, name in enumerate(units):
            mean, spread = means[i].item(), scale[i].item()
            below, above = (high[i].item() * spread, low[i].item() * spread) if spread > 0 else (0.0, 0.0)
            limits[name] = Limits(mean, mean - below, mean - above)
        return limits


def _bernstein(units: Float[Tensor, " n"], span: float, error: float) -> Limits:
    mean, variance, log = units.mean().item(), units.var().item(), math.log(2 / error)
    margin = math.sqrt(2 * variance * log / len(units)) + 7 * span * log / (3 * (len(units) - 1))
    return Limits(mean, mean - margin, mean + margin)

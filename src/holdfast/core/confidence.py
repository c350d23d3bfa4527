"""One-sided confidence limits for means over independent units (prompts, or rollouts where there is one per prompt)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

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
    """How sure the limits of a mean must be: the studentised bootstrap over independent units.

    It assumes no range and is right asymptotically, in the number of units: an outcome rarer than about 3/n is missing
    from n units with 5 % probability, and no resampling of them can show it. Limits for every n, of variables with a
    known range: `betting.EProcess`.
    """

    level: float = 0.95
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ConfigError(f"confidence level is {self.level}, allowed is between 0 and 1, both excluded: say 0.95")
        if self.resamples < 200:
            raise ConfigError(f"resamples is {self.resamples}, allowed are 200 and more")

    def limits(self, units: Mapping[str, Float[Tensor, " n"]], shared_by: int = 1) -> dict[str, Limits]:
        """Limits for the mean of each quantity, at error (1 - level) / shared_by each, so that all hold together.

        A sample without any spread (say, no drift at all) gives the bootstrap nothing to work with: its limits are the
        mean. Raises DataError below two units.
        """
        error = (1 - self.level) / shared_by
        values = {name: value.double() for name, value in units.items()}
        for value in values.values():
            if len(value) < 2:
                raise DataError(
                    f"{len(value)} independent prompts or rollouts: limits need at least 2, and serve from 30"
                )
        return self._bootstrap(values, error) if values else {}

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

"""Levels of a noisy series: where it began, where it is now, how sure the difference is, and at which step it changed.

Values of neighbouring steps resemble each other, so a mean of k of them is less certain than σ/√k. The long-run
deviation s stands for σ: the largest of √(b · variance of means of b steps), b = 1, 2, 4, ... up to a tenth of the
series, of what a running median leaves; never below the robust deviation of single steps' differences, nor below the
root mean square of the standard errors that a log of tokens gives, nor below TWICE the long-run deviation of what went
before (`Series.past`). The difference of two levels of k steps then has the standard error s · √(2/k).

What swings more slowly than a running median is not seen as noise. With `Series.memory` s is never below that of noise
of which a share ρ is left at the next step, AR(1): γ₁ = half the mean squared difference over one step, γ₂ over two,
ρ = γ₂/γ₁ - 1, s = √(γ₁ (1 + ρ)) / (1 - ρ). A trend looks like a long memory, so ρ is at most `Series.memory`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from holdfast.audit.course import Column, Series
from holdfast.audit.measure.contrast import trend_chance

FEWEST_STEPS = 8
"""With fewer, a level at the end cannot be told from one at the start."""
CERTAIN = 4.0
"""Standard errors of a difference between two levels of a long series."""
FEWEST_PAST = 40
"""With fewer values, what went before tells too little of how much they vary."""
TWICE = 2.0
"""What went before shows a few of a run's slow swings, and not the largest."""
FEW = 30
"""With fewer steps a steady trend counts as certain too; with more, values that drift by chance look like one."""
TREND, LEAST = 0.002, 2.0
"""Chance of so steady a trend, and the standard errors that it needs all the same."""
MOST_STEPS = 1024


@dataclass(frozen=True)
class Levels:
    """`first`, `last`: of the first and last fifth; `peak`, `trough`: the extreme ones, of as many steps in succession.

    `error` is the standard error of a difference of two of them; `changed` the step from which the level is another.
    """

    first: float
    last: float
    peak: float
    trough: float
    error: float
    count: int
    trend: float
    """Chance of so steady a rise; of a fall: one minus it. From FEW steps on it is not used, and one half."""
    changed: int

    def rose(self, by: float = 0.0) -> bool:
        """Whether the last level is surely above the first, by more than this."""
        return self._certain(self.last - self.first, by, self.trend)

    def fell(self, by: float = 0.0) -> bool:
        """Whether the last level is surely below the first, by more than this."""
        return self._certain(self.first - self.last, by, 1 - self.trend)

    def fell_from_peak(self) -> bool:
        """Whether the last level is surely below the highest, which was the highest of many."""
        fall = self.peak - self.last
        return fall > (self.needed + 1) * self.error and fall > 0

    @property
    def needed(self) -> float:
        """Standard errors that make a difference certain: more where few steps tell how much they vary."""
        return CERTAIN * (1 + 6 / self.count)

    def leans_up(self) -> bool:
        """Whether the last level is above the first by two standard errors or a fifth: no proof, but no reproach."""
        rise = self.last - self.first
        return rise > 2 * self.error or rise > max(self.error, 0.2 * max(abs(self.first), abs(self.last)))

    def _certain(self, change: float, by: float, chance: float) -> bool:
        if not change > by or change <= 0:
            return False
        if change > self.needed * self.error:
            return True
        return self.count < FEW and chance < TREND and change > LEAST * self.error


def levels(series: Series | None, *, logs: bool = False) -> Levels | None:
    """Levels of a series of finite numbers, of at least FEWEST_STEPS steps; None for a shorter one.

    With `logs` everything is computed on log10 of the values, those at or below 0 taken for the smallest above it.
    """
    if series is None or len(series) < FEWEST_STEPS:
        return None
    steps, values, errors = _thinned(series)
    past = None if series.past is None else series.past[np.isfinite(series.past)]
    if logs:
        values, errors = _logs(values), None
        past = None if past is None else _logs(past)
    count = len(values)
    part = max(3, count // 5)
    deviation = _deviation(values, errors)
    if past is not None and len(past) >= FEWEST_PAST:
        deviation = max(deviation, TWICE * _deviation(past, None))
    if series.memory:
        deviation = max(deviation, _remembering(values, series.memory))
    windows = np.lib.stride_tricks.sliding_window_view(values, part)
    running = (np.median(windows, -1) if part >= 7 else windows.mean(-1)).tolist()
    rises = trend_chance(values) if count < FEW else 0.5
    return Levels(
        first=running[0],
        last=running[-1],
        peak=max(running),
        trough=min(running),
        error=deviation * math.sqrt(2 / part),
        count=count,
        trend=rises,
        changed=int(steps[change_point(values)]),
    )


def change_point(values: Column) -> int:
    """The place from which the mean is another: where the sum of what lies above the whole mean turns (CUSUM)."""
    low, high = np.quantile(values, [0.05, 0.95])
    sums = np.cumsum(np.clip(values, low, high) - np.clip(values, low, high).mean())
    return min(int(np.abs(sums[:-1]).argmax()) + 1, len(values) - 1) if len(values) > 1 else 0


def spikes(series: Series, factor: float, around: int = 10) -> Column:
    """Steps at which a value is `factor` times the median of those around it."""
    values = series.values
    padded = np.pad(values, around, mode="reflect") if len(values) > around else values
    width = min(len(padded), 2 * around + 1)
    medians = np.median(np.lib.stride_tricks.sliding_window_view(padded, width), -1)
    medians = medians if len(medians) == len(values) else np.full(len(values), np.median(values))
    return series.steps[(values > factor * medians) & (medians > 0)]


def _deviation(values: Column, errors: Column | None) -> float:
    """The long-run standard deviation of single steps."""
    count = len(values)
    width = max(5, count // 5) | 1
    padded = np.pad(values, width // 2, mode="reflect")
    rest = values - np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=-1)
    found = [1.4826 * float(np.median(np.abs(np.diff(values)))) / math.sqrt(2)]
    block = 1
    while block <= max(1, count // 10):
        means = rest[: count // block * block].reshape(-1, block).mean(1)
        found.append(math.sqrt(block) * _robust(means))
        block *= 2
    if errors is not None:
        found.append(float(np.sqrt(np.mean(np.square(errors)))))
    return max(found)


def _remembering(values: Column, most: float) -> float:
    """The long-run deviation of AR(1) noise with these differences, its memory at most `most`."""
    one, two = (float(np.mean(np.square(values[lag:] - values[:-lag]))) / 2 for lag in (1, 2))
    if one == 0:
        return 0.0
    memory = min(max(two / one - 1, 0.0), most)
    return math.sqrt(one * (1 + memory)) / (1 - memory)


def _logs(values: Column) -> Column:
    above = values[values > 0]
    return np.log10(np.maximum(values, above.min() if len(above) else 1.0))


def _robust(values: Column) -> float:
    """Standard deviation without the farthest twentieth, which for normal values takes off a fifth."""
    kept = np.sort(np.abs(values))[: max(2, math.ceil(0.95 * len(values)))]
    return 1.2 * float(np.sqrt(np.mean(np.square(kept))))


def _thinned(series: Series) -> tuple[Column, Column, Column | None]:
    """At most MOST_STEPS of a long series, each the mean of neighbours."""
    width = math.ceil(len(series) / MOST_STEPS)
    if width == 1:
        return series.steps, series.values, series.errors
    whole = len(series) // width * width
    errors = None if series.errors is None else series.errors[:whole:width]
    return series.steps[:whole:width], series.values[:whole].reshape(-1, width).mean(1), errors

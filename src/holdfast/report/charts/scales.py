"""Axes: a linear or logarithmic scale, its round ticks, and numbers written for people."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

Number = int | float
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: Number | None, digits: int = 3) -> str:
    """Write a number with a few significant digits; what is missing is a dash, never a zero.

    >>> number(0.27), number(12345.6), number(4.2e-5), number(None)
    ('0.27', '12,346', '4.2×10⁻⁵', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e7):
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPT)}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(size))) if size else 0
    text = f"{value:,.{decimals}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [0, 1], linearly or by logarithm; `ticks` are round numbers inside it."""

    low: Number
    high: Number
    log: bool
    ticks: tuple[Number, ...]

    def fraction(self, value: Number) -> float:
        """Where a value lies between the ends, held inside [0, 1]."""
        if self.log:
            if value <= 0:
                return 0.0
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, share))

    def tick_text(self, tick: Number) -> str:
        """Write a tick: powers of ten on a wide logarithmic axis, elsewhere numbers that differ where ticks do."""
        exponent = round(math.log10(tick)) if self.log and tick > 0 else 0
        if self.log and not -3 < exponent < 5 and math.isclose(tick, 10.0**exponent):
            return f"10{str(exponent).translate(_SUPERSCRIPT)}"
        return number(tick, self._digits())

    def _digits(self) -> int:
        """Significant digits that tell neighbouring ticks apart."""
        if self.log or len(self.ticks) < 2:
            return 3
        largest, step = max(map(abs, self.ticks)), self.ticks[1] - self.ticks[0]
        return max(3, math.floor(math.log10(largest)) - math.floor(math.log10(step) + 1e-9) + 1)


def scale_of(values: Iterable[Number | None], *, log: bool = False, ticks: int = 5, tight: bool = False) -> Scale:
    """Choose a scale that holds all finite values; `tight` ends it at the data instead of at round numbers.

    On a logarithmic scale only positive values count. Without any value the scale is [0, 1], or [0.1, 1] if log.
    """
    # Beyond 1e300 powers of ten overflow; such a value is drawn at the end of the axis.
    usable = [float(v) for v in values if v is not None and abs(v) < 1e300 and (v > 1e-300 or not log)]
    if log:
        return _log_scale(usable or [0.1, 1.0], tight)
    return _linear_scale(usable or [0.0, 1.0], ticks, tight)


def _linear_scale(values: list[float], ticks: int, tight: bool) -> Scale:
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        pad = abs(low) * 0.1 or 0.5
        low, high = low - pad, high + pad
    step = _round_step((high - low) / ticks)
    if tight and all(v.is_integer() for v in values):
        # Steps and positions are whole: no tick between two of them.
        step = max(1.0, step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    marks = tuple(round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1))
    if not tight:
        return Scale(first * step, last * step, False, marks)
    slack = 1e-9 * (high - low)
    return Scale(low, high, False, tuple(m for m in marks if low - slack <= m <= high + slack))


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if raw <= m * power * (1 + 1e-9))


def _log_scale(values: list[float], tight: bool) -> Scale:
    low, high = math.log10(min(values)), math.log10(max(values))
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    first, last = math.floor(low + 1e-9), math.ceil(high - 1e-9)
    stride = max(1, math.ceil((last - first) / 6))
    steps = (1, 2, 5) if last - first <= 2 else (1,)
    marks = [m * 10.0**e for e in range(first, last + 1, stride) for m in steps]
    if tight or last - first <= 2:
        # A narrow range ends at the nearest 1-2-5 step rather than at a whole power of ten.
        if not tight:
            low = math.log10(max(m for m in [10.0**first, *marks] if math.log10(m) <= low + 1e-9))
            high = math.log10(min(m for m in [*marks, 10.0**last] if math.log10(m) >= high - 1e-9))
        marks = [m for m in marks if low - 1e-9 <= math.log10(m) <= high + 1e-9]
        return Scale(10.0**low, 10.0**high, True, tuple(marks))
    return Scale(10.0**first, 10.0**last, True, tuple(m for m in marks if m <= 10.0**last * 1.0001))

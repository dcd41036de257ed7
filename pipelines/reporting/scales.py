"""Axes of charts: ticks at round numbers, the choice of a logarithmic axis, and numbers as text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)
_LOG_ROUND = ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7), (1, 1.5, 2, 3, 4, 5, 6, 8))
"""Multiples of powers of ten at which a logarithmic axis has ticks, from coarse to fine."""
EARLY_SHARE = 0.05
"""Share of a run's steps in which more than half of the change lies, where log steps read best."""
LOG_RATIO = 30.0
"""Ratio of the largest to the smallest value from which a logarithmic axis reads best."""


@dataclass(frozen=True)
class Scale:
    """A mapping of values from `low` to `high` to places from `start` to `stop` in a picture."""

    low: float
    high: float
    start: float
    stop: float
    is_log: bool = False

    def __call__(self, values: Values | float) -> Values:
        """The place of each value; values outside are placed at the nearer end."""
        clipped = np.clip(np.asarray(values, np.float64), self.low, self.high)
        low, high = (
            (math.log(self.low), math.log(self.high)) if self.is_log else (self.low, self.high)
        )
        inner = np.log(clipped) if self.is_log else clipped
        places: Values = self.start + (inner - low) / (high - low) * (self.stop - self.start)
        return places

    def ticks(self, count: int) -> list[float]:
        """About `count` round values between `low` and `high`."""
        if self.is_log:
            return _log_ticks(self.low, self.high, count)
        return linear_ticks(self.low, self.high, count)


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """At most `count + 1` multiples of 1, 2, 2.5 or 5 times a power of ten from `low` to `high`."""
    step = round_up((high - low) / max(count, 1))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def round_up(value: float) -> float:
    """The smallest 1, 2, 2.5 or 5 times a power of ten that is not below a positive value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in _ROUND if factor * power >= value * (1 - 1e-9))


def padded(low: float, high: float, is_log: bool = False) -> tuple[float, float]:
    """The ends of an axis that shows values from `low` to `high` with some room around them."""
    if is_log:
        room = (high / low) ** 0.04 if high > low else 1.1
        return low / room, high * room
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (0.0 if 0 <= low < 0.3 * high else low - room), high + room


def steps_need_log(steps: Values, values: Values) -> bool:
    """Whether most of a curve's change lies in its first steps, so that log steps show it best."""
    is_known = np.isfinite(values) & (steps > 0)
    steps, values = steps[is_known], values[is_known]
    if steps.size < 20 or steps[-1] < 20 * steps[0]:
        return False
    around = max(1, steps.size // 50)
    place = int(np.searchsorted(steps, EARLY_SHARE * steps[-1]))
    early = float(np.median(values[max(0, place - around) : place + around]))
    first, last = float(values[0]), float(np.median(values[-around:]))
    return abs(first - early) > 0.5 * abs(first - last)


def number_text(value: float) -> str:
    """A number of an axis for people: `1,500`, `0.02`, `20k`, `3M`; powers of ten far from 1."""
    size = abs(value)
    if size == 0:
        return "0"
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= unit:
            return f"{value / (1e3 if name == 'k' else unit):.4g}{name}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if size >= 1e-4 else f"{value:.2g}"


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    found: list[float] = []
    for factors in _LOG_ROUND:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        values = [f * 10.0**e for e in exponents for f in factors]
        finer = [v for v in values if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
        if len(finer) > count + 1:
            break
        found = finer
    if not found:  # more decades than ticks, or less than a part of one
        exponents = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        found = [10.0**e for e in exponents[:: max(1, -(-len(exponents) // count))]]
    return found if len(found) > 1 else linear_ticks(low, high, count)

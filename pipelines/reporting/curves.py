"""Curves of many records thinned to what a screen shows: a smoothed line and its envelope."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bytelm.pipelines.reporting.scales import Values

BINS = 240
"""Places along the axis of steps; a chart is a few hundred pixels wide."""
SMOOTHED_SHARE = 0.012
"""Standard deviation of the bell that smooths a line, as a share of the axis."""


@dataclass(frozen=True)
class Curve:
    """[bins] a curve, thinned: at each place a step, the mean, and the smallest and largest value
    of the records there, and the mean over neighbouring places too."""

    steps: Values
    smoothed: Values
    low: Values
    high: Values


def thinned(
    steps: Values, values: Values, is_log: bool = False, is_smooth: bool = True, bins: int = BINS
) -> Curve:
    """Thin a curve to at most `bins` places, at equal distances on the axis of steps.

    Args:
        steps: [n], increasing.
        values: [n]; those that are not finite are left out.
        is_log: whether the axis is logarithmic.
        is_smooth: whether the line is averaged over neighbouring places; otherwise it has the mean
            of each place.
    """
    is_shown = np.isfinite(values) & ((steps > 0) | (not is_log))
    steps, values = steps[is_shown], values[is_shown]
    if not steps.size:
        return Curve(*(np.empty(0) for _ in range(4)))
    along = np.log(steps) if is_log else steps
    width = (along[-1] - along[0]) / bins or 1.0
    place = np.minimum(((along - along[0]) / width).astype(np.int64), bins - 1)
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    counts = np.diff(starts, append=steps.size)
    sums = np.add.reduceat(values, starts)
    return Curve(
        np.add.reduceat(steps, starts) / counts,
        _smoothed(place[starts] / bins, sums, counts) if is_smooth else sums / counts,
        np.minimum.reduceat(values, starts),
        np.maximum.reduceat(values, starts),
    )


def _smoothed(along: Values, sums: Values, counts: Values) -> Values:
    """[bins] means weighted by a bell over the axis; `along` is from 0 to 1."""
    distance = (along[:, None] - along[None, :]) / SMOOTHED_SHARE
    weights = np.exp(-0.5 * distance**2)
    means: Values = (weights @ sums) / (weights @ counts)
    return means


def value_range(curves: list[Curve]) -> tuple[float, float] | None:
    """The range of values that a chart of these curves should show; None if there are none.

    It holds every smoothed line and most of the envelopes; a few outliers are cut at the edge.
    """
    if not any(c.steps.size for c in curves):
        return None
    lows = np.concatenate([c.low for c in curves])
    highs = np.concatenate([c.high for c in curves])
    smoothed = np.concatenate([c.smoothed for c in curves])
    low = min(float(smoothed.min()), float(np.quantile(lows, 0.02)))
    high = max(float(smoothed.max()), float(np.quantile(highs, 0.98)))
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None

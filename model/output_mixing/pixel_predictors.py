"""Predictors of pixels.

A least-squares prediction of each channel from 17 neighbours, fitted to all pixels before with
exponential forgetting (as in TMW and paq8px); the median of JPEG-LS after the channel before it; a
gradient. Contexts are made of these predictions and of the pixels around.
"""

from __future__ import annotations

import math

import numpy as np

from bytelm.model.codec_features.layout import LINE, PLACE, SIZE, UNIT
from bytelm.model.numba_kernels import kernel_part
from bytelm.model.output_mixing.contexts import near, stir
from bytelm.model.output_mixing.least_squares import add_products, dot, solve
from bytelm.model.output_mixing.state import (
    ACTIVITIES,
    CHANNELS,
    PIXEL_FACTORS,
    REGRESSIONS,
    PredictorState,
)

MEMORY = 0.998
"""Share of a regression's sums that stays at each pixel."""
RIDGE = 2.0
PERIOD = 4
"""Pixels with the same factors."""
FIRST_FIT = 24
"""Pixels before the first prediction by regression."""
DECAY = 0.02
WIDTH = 0.6
"""Width of a logistic distribution for a mean absolute error of 1."""


@kernel_part
def predict_pixel(state: PredictorState, row: int) -> None:
    """Read the neighbours of a pixel's byte, predict it and hash its contexts."""
    r, around, prediction = state.rows[row], state.neighbours[row], state.predictions[row]
    unit, line, channel = r.place[UNIT], r.place[LINE], r.place[PLACE]
    left = near(state, row, unit, 0)
    above = near(state, row, line, left)
    corner, right = near(state, row, line + unit, above), near(state, row, line - unit, above)
    around[0], around[1], around[2], around[3] = left, above, corner, right
    around[4] = near(state, row, 2 * unit, left)
    around[5] = near(state, row, 2 * line, above)
    around[6] = near(state, row, line - 2 * unit, above)
    around[7] = 32.0
    for i in range(8, PIXEL_FACTORS):
        around[i] = 0.0
    before = step = gradient = median_before = 0
    median = _median(left, above, corner)
    if channel > 0:  # the same of the channel before, which is known for this pixel
        before = near(state, row, 1, 0)
        left_1, above_1 = near(state, row, unit + 1, 0), near(state, row, line + 1, 0)
        corner_1 = near(state, row, line + unit + 1, 0)
        around[8], around[9], around[10], around[11] = before, left_1, above_1, corner_1
        around[12] = near(state, row, line - unit + 1, 0)
        around[13] = near(state, row, 2 * unit + 1, 0)
        around[14] = near(state, row, 2 * line + 1, 0)
        median_before = _median(left_1, above_1, corner_1)
        step = before - median_before
        gradient = before + (left - left_1 + above - above_1) // 2
    if channel > 1:
        around[15] = near(state, row, 2, 0)
        around[16] = near(state, row, unit + 2, 0)
        around[17] = near(state, row, line + 2, 0)
    differences = abs(left - corner) + abs(above - corner) + abs(above - right) + abs(step)
    r.activity = min(int(2 * math.log2(1.0 + differences)), ACTIVITIES - 1)
    own = min(channel, CHANNELS - 1)
    fitted = dot(state.factors[row, 0, own, :PIXEL_FACTORS], around[:PIXEL_FACTORS])
    plain = min(max(median + step, 0), 255)
    prediction.means[0] = min(max(fitted, 0.0), 255.0)
    if r.place[SIZE] < FIRST_FIT * unit:
        prediction.means[0] = plain
    prediction.means[1] = plain
    prediction.means[2] = min(max(gradient if channel else left + above - corner, 0), 255)
    for i in range(REGRESSIONS):
        prediction.widths[i] = WIDTH * state.errors[row, i, own, r.activity] + 0.05
    _hash_pixel(state, row, plain)


@kernel_part
def _median(left: int, above: int, corner: int) -> int:
    """The median of left, above and the plane through the three neighbours (JPEG-LS)."""
    return min(max(left + above - corner, min(left, above)), max(left, above))


@kernel_part
def _hash_pixel(state: PredictorState, row: int, plain: int) -> None:
    """Contexts of a pixel's byte: two predictions of it, the channels before it, the same with the
    byte above, and the whole pixels around it, many and few."""
    r, prediction = state.rows[row], state.predictions[row]
    unit, line, channel = r.place[UNIT], r.place[LINE], r.place[PLACE]
    hashes = prediction.hashes
    one = near(state, row, 1, 0) if channel > 0 else 0
    two = near(state, row, 2, 0) if channel > 1 else 0
    salt = np.uint64(1 + 8 * channel)
    fitted = int(prediction.means[0] + 0.5)
    hashes[0] = stir(stir(salt, 1), 256 * r.activity + plain)
    hashes[1] = stir(stir(salt, 2), 256 * r.activity + fitted)
    hashes[2] = stir(stir(salt, 3), 256 * one + two)
    above = 256 * near(state, row, line, 0) + near(state, row, line + 1, 0)
    hashes[3] = stir(stir(stir(salt, 4), 256 * one + two), above)
    key = stir(salt, 5)
    for i in range(1, channel + unit + 1):
        key = stir(key, near(state, row, i, 256))
    for i in range(unit):
        key = stir(key, near(state, row, line + channel - i, 256))
    hashes[4] = key
    for i in range(channel + unit + 1, channel + 2 * unit + 1):
        key = stir(key, near(state, row, i, 256))
    for i in range(unit):
        key = stir(key, near(state, row, line + channel + unit - i, 256))
        key = stir(key, near(state, row, line + channel - unit - i, 256))
    hashes[5] = key
    prediction.contexts = 6


@kernel_part
def learn_pixel(state: PredictorState, row: int, byte: int) -> None:
    """Take a pixel's byte into the errors and the regression."""
    r, prediction = state.rows[row], state.predictions[row]
    own = min(r.place[PLACE], CHANNELS - 1)
    for i in range(REGRESSIONS):
        errors = state.errors[row, i, own]
        errors[r.activity] += DECAY * (abs(byte - prediction.means[i]) - errors[r.activity])
    around = state.neighbours[row, :PIXEL_FACTORS]
    moments = state.moments[row, 0, own]
    add_products(moments, around, byte, MEMORY)
    if r.place[SIZE] // r.place[UNIT] % PERIOD == 0:
        solve(moments, state.factors[row, 0, own, :PIXEL_FACTORS], state.solver[row], RIDGE)

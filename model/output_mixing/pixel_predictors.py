"""Predictors of pixels.

A least-squares prediction of each channel from up to 26 neighbours, and the median of JPEG-LS after
the channel before it. Contexts are made of these predictions and of the pixels around.

The regression is fitted to what is near in both directions, as in TMW and Vanilc: sums of products
are kept by blocks of columns, fade from line to line, and those of a block and its two neighbours
are added up where a line enters the block. A pixel counts the less, the worse its own neighbours
were predicted; how wrong these were also gives the width of the distribution (as in MRP and CALIC).
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
    BLOCKS,
    CHANNELS,
    PIXEL_FACTORS,
    PredictorState,
)

OWN = np.array(
    [
        *[(1, 0), (0, 1), (1, 1), (-1, 1), (2, 0), (0, 2), (-2, 1), (2, 1), (1, 2), (-1, 2)],
        *[(3, 0), (0, 3), (2, 2), (-2, 2), (-3, 1), (3, 1), (3, 2), (-3, 2), (4, 0), (1, 3)],
        (-1, 3),
    ]
)
"""Neighbours in the same channel: pixels to the left and lines above. The first channel has all of
them, the others the first MOST_OWN."""
MOST_OWN = 15
BEFORE = np.array([(0, 0), (1, 0), (0, 1), (1, 1), (-1, 1), (2, 0), (0, 2)])
"""Neighbours in the channel before."""
BEFORE_THAT = np.array([(0, 0), (1, 0), (0, 1)])
"""And in the one before that."""
CONSTANT = 32.0
BLOCK_MEMORY = 0.9
"""Share of a block's sums that stays at each line."""
LEAST_BLOCK = 8
"""Columns of a block, unless an image has so many that there are BLOCKS of more."""
RIDGE = 1.0
FIRST_FIT = 24
"""Pixels before the first prediction by regression."""
DECAY = 0.02
WIDTH = 0.6
"""Width of a logistic distribution for a mean absolute error of 1."""
FITTED, PLAIN, SPREAD = range(3)
"""Predictions: the regression, the median, and the regression with a width by the neighbours."""
GRADIENT_LEVELS = 16


@kernel_part
def predict_pixel(state: PredictorState, row: int) -> None:
    """Read the neighbours of a pixel's byte, predict it and hash its contexts."""
    r, prediction = state.rows[row], state.predictions[row]
    unit, line, channel = r.place[UNIT], r.place[LINE], r.place[PLACE]
    own = min(channel, CHANNELS - 1)
    left = near(state, row, unit, 0)
    above = near(state, row, line, left)
    corner, right = near(state, row, line + unit, above), near(state, row, line - unit, above)
    step = 0  # what the channel before has over its median
    if channel > 0:
        left_1, above_1 = near(state, row, unit + 1, 0), near(state, row, line + 1, 0)
        corner_1 = near(state, row, line + unit + 1, 0)
        step = near(state, row, 1, 0) - _median(left_1, above_1, corner_1)
    plain = min(max(_median(left, above, corner) + step, 0), 255)
    count = _neighbours(channel)
    _read_neighbours(state, row, left, above)
    _enter_block(state, row, own, count)
    around = state.neighbours[row, :count]
    fitted = dot(state.factors[row, 0, own, :count], around)
    is_fitted = r.place[SIZE] >= FIRST_FIT * unit
    _read_spread(state, row)
    prediction.regressions = 3
    prediction.means[FITTED] = min(max(fitted, 0.0), 255.0) if is_fitted else plain
    prediction.means[PLAIN] = plain
    prediction.means[SPREAD] = prediction.means[FITTED]
    for i in range(SPREAD):
        prediction.widths[i] = WIDTH * state.errors[row, i, own, r.activity] + 0.05
    prediction.widths[SPREAD] = WIDTH * r.spread + 0.3
    gradients = abs(left - corner) + abs(above - corner) + abs(above - right) + abs(step)
    level = min(int(2 * math.log2(1.0 + gradients)), GRADIENT_LEVELS - 1)
    _hash_pixel(state, row, plain, level)


@kernel_part
def _read_neighbours(state: PredictorState, row: int, left: int, above: int) -> None:
    """Read what the regression of a pixel's byte takes."""
    r, around = state.rows[row], state.neighbours[row]
    unit, line, channel = r.place[UNIT], r.place[LINE], r.place[PLACE]
    around[0], count = CONSTANT, 1
    for i in range(MOST_OWN if channel > 0 else len(OWN)):
        distance = OWN[i, 0] * unit + OWN[i, 1] * line
        around[count] = near(state, row, distance, above if OWN[i, 1] else left)
        count += 1
    if channel > 0:
        for i in range(len(BEFORE)):
            distance = BEFORE[i, 0] * unit + BEFORE[i, 1] * line + 1
            around[count] = near(state, row, distance, 0)
            count += 1
    if channel > 1:
        for i in range(len(BEFORE_THAT)):
            distance = BEFORE_THAT[i, 0] * unit + BEFORE_THAT[i, 1] * line + 2
            around[count] = near(state, row, distance, 0)
            count += 1


@kernel_part
def _neighbours(channel: int) -> int:
    """Numbers that the regression of a channel takes."""
    if channel == 0:
        return 1 + len(OWN)
    return 1 + MOST_OWN + len(BEFORE) + (len(BEFORE_THAT) if channel > 1 else 0)


@kernel_part
def _block_columns(width: int) -> int:
    """Columns of a block of an image of so many."""
    return max(LEAST_BLOCK, (width + BLOCKS - 1) // BLOCKS)


@kernel_part
def _enter_block(state: PredictorState, row: int, own: int, count: int) -> None:
    """Fit a channel's regression where a line enters a block, and let the block's sums fade."""
    r, sums = state.rows[row], state.moments[row, 0, own]
    width = r.place[LINE] // r.place[UNIT]
    columns, column = _block_columns(width), r.place[SIZE] // r.place[UNIT] % width
    if column % columns:
        return
    block, blocks = column // columns, (width + columns - 1) // columns
    first, end, last = max(block - 1, 0), min(block + 2, blocks), sums.shape[1] - 1
    for i in range(count):
        of_row = sums[i]
        of_row[: i + 1] = 0.0
        of_row[last] = 0.0
        for other in range(first, end):
            of_block = state.blocks[row, own, other, i]
            for j in range(i + 1):
                of_row[j] += of_block[j]
            of_row[last] += of_block[PIXEL_FACTORS]
        of_own = state.blocks[row, own, block, i]
        for j in range(PIXEL_FACTORS + 1):
            of_own[j] *= BLOCK_MEMORY
    solve(sums, state.factors[row, 0, own, :count], state.solver[row], RIDGE)


@kernel_part
def _read_spread(state: PredictorState, row: int) -> None:
    """Find how wrong the regression was around a pixel's byte, in the channel before, too."""
    r = state.rows[row]
    unit, line = r.place[UNIT], r.place[LINE]
    left = _error(state, row, unit, 0.0)
    above = _error(state, row, line, left)
    corner, right = _error(state, row, line + unit, above), _error(state, row, line - unit, above)
    far = _error(state, row, 2 * unit, left) + _error(state, row, 2 * line, above)
    spread = (2.0 * (left + above) + corner + right + 0.5 * far) / 7.0
    if r.place[PLACE] > 0:
        spread = 0.6 * spread + 0.4 * _error(state, row, 1, left)
    r.spread = spread
    r.activity = min(int(2.0 * math.log2(1.0 + 4.0 * spread)), ACTIVITIES - 1)


@kernel_part
def _error(state: PredictorState, row: int, distance: int, otherwise: float) -> float:
    """How wrong the regression was of the byte at a distance, or another value without one."""
    size = state.rows[row].place[SIZE]
    is_there = 0 < distance <= size
    return float(state.pixel_errors[row, size - distance]) if is_there else otherwise


@kernel_part
def _median(left: int, above: int, corner: int) -> int:
    """The median of left, above and the plane through the three neighbours (JPEG-LS)."""
    return min(max(left + above - corner, min(left, above)), max(left, above))


@kernel_part
def _hash_pixel(state: PredictorState, row: int, plain: int, level: int) -> None:
    """Contexts of a pixel's byte: two predictions of it, the channels before it, the same with the
    byte above, and the whole pixels around it, many and few.

    Args:
        level: of the gradients around it.
    """
    r, prediction = state.rows[row], state.predictions[row]
    unit, line, channel = r.place[UNIT], r.place[LINE], r.place[PLACE]
    hashes = prediction.hashes
    one = near(state, row, 1, 0) if channel > 0 else 0
    two = near(state, row, 2, 0) if channel > 1 else 0
    salt = np.uint64(1 + 8 * channel)
    fitted = int(prediction.means[FITTED] + 0.5)
    hashes[0] = stir(stir(salt, 1), 256 * level + plain)
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
    """Take a pixel's byte into the errors and the sums of its block."""
    r, prediction = state.rows[row], state.predictions[row]
    own = min(r.place[PLACE], CHANNELS - 1)
    for i in range(SPREAD):
        errors = state.errors[row, i, own]
        errors[r.activity] += DECAY * (abs(byte - prediction.means[i]) - errors[r.activity])
    state.pixel_errors[row, r.place[SIZE]] = abs(byte - prediction.means[FITTED])
    width = r.place[LINE] // r.place[UNIT]
    block = r.place[SIZE] // r.place[UNIT] % width // _block_columns(width)
    around = state.neighbours[row, : _neighbours(r.place[PLACE])]
    add_products(state.blocks[row, own, block], around, byte, 1.0, 1.0 / (1.0 + r.spread))

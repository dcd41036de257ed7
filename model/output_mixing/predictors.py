"""Predictors of the next byte of a row, from the ids before it, in machine code.

A row's state machine takes id after id with their places in their payloads, and leaves a record of
`state.PREDICTION` for the next one. Nothing here depends on a network.

    text     the last bytes and words as contexts; the latest earlier occurrence of the last bytes
    pixels   a least-squares prediction of each channel from 17 neighbours, fitted to all pixels
             before with exponential forgetting (as in TMW and paq8px); the median of JPEG-LS after
             the channel before it; a gradient
    samples  a least-squares prediction from the last 32 samples, then a long filter of normalised
             steps on what that leaves (as in Monkey's Audio and OptimFROG); the line through the
             last two

All kernels stand in this file: see `numba_kernels`.

Shapes:
    B rows    n ids of a part of a row    other letters: see `state`
"""

from __future__ import annotations

import functools
import math
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from bytelm.model.codec_features.layout import IS_LOW, KIND, LINE, PLACE, PLACES, SIZE, UNIT
from bytelm.model.codec_features.state import NO_PAYLOAD, PIXELS, SAMPLES
from bytelm.model.numba_kernels import compiling, kernel, kernel_part
from bytelm.model.output_mixing.state import (
    ACTIVITIES,
    CASCADE,
    CHANNELS,
    FACTORS,
    MATCH_LEVELS,
    MATCH_SLOTS,
    PIXEL_FACTORS,
    PREDICTION,
    REGRESSIONS,
    PredictorState,
    new_predictors,
)

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Places = npt.NDArray[np.int32]
Predictions = npt.NDArray[np.void]
Row = Any
"""A record of `state.ROW`."""

TEXT_ORDERS = (1, 2, 3, 4, 6)
TEXT_MATCH, PIXEL_MATCH = 5, 6
"""Bytes that a match has in common."""
LONGEST_WORD, LONGEST_CHECK, LONGEST_MATCH = 20, 32, 400
MEMORY = 0.998
"""Share of a regression's sums that stays at each step."""
PIXEL_RIDGE, SAMPLE_RIDGE = 2.0, 1.0
PIXEL_PERIOD, SAMPLE_PERIOD = 4, 8
"""Pixels and samples with the same factors."""
FIRST_FIT = 24
"""Pixels before the first prediction by regression."""
FIRST_ERROR, FIRST_SAMPLE_ERROR = 6.0, 200.0
PIXEL_DECAY, FAST_DECAY, SLOW_DECAY = 0.02, 0.06, 0.008
WIDTH = 0.6
"""Width of a logistic distribution for a mean absolute error of 1."""
STEP = 0.0005
"""Step of the long filter's normalised gradient."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio

_sum_kernel = partial(kernel_part, fastmath={"contract", "reassoc", "nsz"})
"""For sums of products, which the compiler may add up in lanes."""

# --- what Python calls ---


@functools.cache
def compile_kernels() -> None:
    """Compile the kernels, or load them where they were compiled before."""
    with compiling():
        state, ids = new_predictors(1, 16), np.zeros(1, np.int64)
        places = np.zeros((1, PLACES), np.int32)
        predict_ids(state, 0, ids, places, np.zeros(1, PREDICTION))
        predict_rows(state, ids, places)
        push_ids(state, ids, ids)


@kernel
def predict_ids(
    state: PredictorState, row: int, ids: Ints, places: Places, predictions: Predictions
) -> None:
    """Take a row's next ids [n] with their places [n, PLACES], and write what the predictors say
    of each before it, [n] of PREDICTION."""
    for index in range(len(ids)):
        _predict(state, row, places[index])
        predictions[index] = state.predictions[row]
        _push_id(state, row, ids[index])


@kernel
def predict_rows(state: PredictorState, rows: Ints, places: Places) -> None:
    """Predict the next id of some rows [R], with places [B, PLACES], in `state.predictions`."""
    for row in rows:
        _predict(state, row, places[row])


@kernel
def push_ids(state: PredictorState, rows: Ints, ids: Ints) -> None:
    """Take the next id of some rows, [R] both, after `predict_rows`."""
    for index in range(len(rows)):
        _push_id(state, rows[index], ids[index])


# --- ids ---


@kernel_part
def _predict(state: PredictorState, row: int, place: Places) -> None:
    r, prediction = state.rows[row], state.predictions[row]
    for column in range(PLACES):
        r.place[column] = place[column]
    r.place[SIZE] += r.before
    prediction.kind, prediction.is_low = place[KIND], place[IS_LOW]
    prediction.size, prediction.expected = r.place[SIZE], -1
    if place[KIND] == NO_PAYLOAD:
        return
    if r.place[SIZE] == 0:
        _begin_payload(state, row)
    if place[KIND] == SAMPLES:
        if not place[IS_LOW]:
            _predict_sample(state, row)
        _hash_sample(state, row)
        return
    if place[KIND] == PIXELS:
        _predict_pixel(state, row)
        _find_match(state, row, PIXEL_MATCH)
    else:
        _hash_text(state, row)
        _find_match(state, row, TEXT_MATCH)


@kernel_part
def _begin_payload(state: PredictorState, row: int) -> None:
    r = state.rows[row]
    r.match, r.match_length, r.samples, r.activity = -1, 0, 0, 0
    state.positions[row] = 0
    state.samples[row, :CASCADE] = 0.0
    state.moments[row] = 0.0
    state.factors[row] = 0.0
    state.cascade[row] = 0.0
    state.errors[row] = FIRST_SAMPLE_ERROR if r.place[KIND] == SAMPLES else FIRST_ERROR
    for i in range(REGRESSIONS):
        state.predictions[row].means[i] = 0.0
        state.predictions[row].widths[i] = FIRST_SAMPLE_ERROR


@kernel_part
def _push_id(state: PredictorState, row: int, id_: int) -> None:
    """Take a row's next id, after `_predict`; one above 255 stands for the byte 0."""
    r = state.rows[row]
    size, kind = r.place[SIZE], r.place[KIND]
    if kind == NO_PAYLOAD:
        return
    byte = id_ if id_ < 256 else 0
    state.bytes[row, size] = byte
    r.held = size + 1
    if kind == SAMPLES:
        if r.place[IS_LOW] and size:
            _learn_sample(
                state, row, 256 * _signed(int(np.int64(state.bytes[row, size - 1]))) + byte
            )
        return
    if r.match >= 0:
        is_hit = state.bytes[row, r.match] == byte
        r.match = r.match + 1 if is_hit else -1
        r.match_length = min(r.match_length + 1, LONGEST_MATCH)
    if kind == PIXELS:
        _learn_pixel(state, row, byte)


# --- matches and texts ---


@kernel_part
def _stir(key: np.uint64, value: int) -> np.uint64:
    """A hash of another hash and a number."""
    mixed = (key ^ np.uint64(value)) * _FACTOR
    return mixed ^ (mixed >> np.uint64(29))


@kernel_part
def _find_match(state: PredictorState, row: int, least: int) -> None:
    """Predict the byte by the match, or by the latest one of `least` bytes where it has ended."""
    r, data, prediction = state.rows[row], state.bytes[row], state.predictions[row]
    size = r.place[SIZE]
    if size >= least:
        key = np.uint64(0)
        for i in range(1, least + 1):
            key = _stir(key, data[size - i])
        slot = np.int64(key >> np.uint64(40)) & (MATCH_SLOTS - 1)
        candidate = state.positions[row, slot] - 1
        if r.match < 0 and candidate >= 0:
            length, most = 0, min(LONGEST_CHECK, candidate)
            while length < most and data[candidate - 1 - length] == data[size - 1 - length]:
                length += 1
            if length >= least:
                r.match, r.match_length = candidate, length
        state.positions[row, slot] = size + 1
    if r.match >= 0:
        length = r.match_length
        level = length if length < 16 else 16 + (length - 16) // 8
        prediction.expected, prediction.level = data[r.match], min(level, MATCH_LEVELS - 1)


@kernel_part
def _hash_text(state: PredictorState, row: int) -> None:
    """Contexts of a byte: those before it by order, its word so far, and with the word before."""
    r, data, prediction = state.rows[row], state.bytes[row], state.predictions[row]
    size, key, order = r.place[SIZE], np.uint64(0), 0
    for i in range(len(TEXT_ORDERS)):
        while order < TEXT_ORDERS[i]:
            order += 1
            key = _stir(key, data[size - order] + 1 if order <= size else 0)
        prediction.hashes[i] = key
    index, key = size - 1, np.uint64(1 << 32)
    for i in range(2):
        length = 0
        while index >= 0 and length < LONGEST_WORD and _is_letter(data[index]):
            key = _stir(key, data[index] | 32)
            index -= 1
            length += 1
        index -= 1
        key = _stir(key, 256 + i)
        prediction.hashes[len(TEXT_ORDERS) + i] = key
    prediction.contexts = len(TEXT_ORDERS) + 2


@kernel_part
def _is_letter(byte: int) -> bool:
    """Whether a byte belongs to a word: a letter of ASCII, or a part of one beyond."""
    return 97 <= byte | 32 <= 122 or byte > 127


# --- pixels ---


@kernel_part
def _near(state: PredictorState, row: int, distance: int, otherwise: int) -> int:
    """The byte at a distance before the next one, or another value where the payload has none."""
    size = state.rows[row].place[SIZE]
    return int(np.int64(state.bytes[row, size - distance])) if 0 < distance <= size else otherwise


@kernel_part
def _predict_pixel(state: PredictorState, row: int) -> None:
    """Read the neighbours of a pixel's byte, predict it and hash its contexts."""
    r, around, prediction = state.rows[row], state.neighbours[row], state.predictions[row]
    unit, line, channel = r.place[UNIT], r.place[LINE], r.place[PLACE]
    left = _near(state, row, unit, 0)
    above = _near(state, row, line, left)
    corner, right = _near(state, row, line + unit, above), _near(state, row, line - unit, above)
    around[0], around[1], around[2], around[3] = left, above, corner, right
    around[4] = _near(state, row, 2 * unit, left)
    around[5] = _near(state, row, 2 * line, above)
    around[6] = _near(state, row, line - 2 * unit, above)
    around[7] = 32.0
    for i in range(8, PIXEL_FACTORS):
        around[i] = 0.0
    before = step = gradient = median_before = 0
    median = _median(left, above, corner)
    if channel > 0:  # the same of the channel before, which is known for this pixel
        before = _near(state, row, 1, 0)
        left_1, above_1 = _near(state, row, unit + 1, 0), _near(state, row, line + 1, 0)
        corner_1 = _near(state, row, line + unit + 1, 0)
        around[8], around[9], around[10], around[11] = before, left_1, above_1, corner_1
        around[12] = _near(state, row, line - unit + 1, 0)
        around[13] = _near(state, row, 2 * unit + 1, 0)
        around[14] = _near(state, row, 2 * line + 1, 0)
        median_before = _median(left_1, above_1, corner_1)
        step = before - median_before
        gradient = before + (left - left_1 + above - above_1) // 2
    if channel > 1:
        around[15] = _near(state, row, 2, 0)
        around[16] = _near(state, row, unit + 2, 0)
        around[17] = _near(state, row, line + 2, 0)
    differences = abs(left - corner) + abs(above - corner) + abs(above - right) + abs(step)
    r.activity = min(int(2 * math.log2(1.0 + differences)), ACTIVITIES - 1)
    own = min(channel, CHANNELS - 1)
    fitted = _dot(state.factors[row, own, :PIXEL_FACTORS], around[:PIXEL_FACTORS])
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
    one = _near(state, row, 1, 0) if channel > 0 else 0
    two = _near(state, row, 2, 0) if channel > 1 else 0
    salt = np.uint64(1 + 8 * channel)
    fitted = int(prediction.means[0] + 0.5)
    hashes[0] = _stir(_stir(salt, 1), 256 * r.activity + plain)
    hashes[1] = _stir(_stir(salt, 2), 256 * r.activity + fitted)
    hashes[2] = _stir(_stir(salt, 3), 256 * one + two)
    above = 256 * _near(state, row, line, 0) + _near(state, row, line + 1, 0)
    hashes[3] = _stir(_stir(_stir(salt, 4), 256 * one + two), above)
    key = _stir(salt, 5)
    for i in range(1, channel + unit + 1):
        key = _stir(key, _near(state, row, i, 256))
    for i in range(unit):
        key = _stir(key, _near(state, row, line + channel - i, 256))
    hashes[4] = key
    for i in range(channel + unit + 1, channel + 2 * unit + 1):
        key = _stir(key, _near(state, row, i, 256))
    for i in range(unit):
        key = _stir(key, _near(state, row, line + channel + unit - i, 256))
        key = _stir(key, _near(state, row, line + channel - unit - i, 256))
    hashes[5] = key
    prediction.contexts = 6


@kernel_part
def _learn_pixel(state: PredictorState, row: int, byte: int) -> None:
    """Take a pixel's byte into the errors and the regression."""
    r, prediction = state.rows[row], state.predictions[row]
    own = min(r.place[PLACE], CHANNELS - 1)
    for i in range(REGRESSIONS):
        errors = state.errors[row, i, own]
        errors[r.activity] += PIXEL_DECAY * (abs(byte - prediction.means[i]) - errors[r.activity])
    around = state.neighbours[row, :PIXEL_FACTORS]
    _add_products(state.moments[row, own], around, byte)
    if r.place[SIZE] // r.place[UNIT] % PIXEL_PERIOD == 0:
        _solve(state, row, own, PIXEL_FACTORS, PIXEL_RIDGE)


# --- samples ---


@kernel_part
def _signed(byte: int) -> int:
    """A byte read as two's complement, -128 to 127."""
    return byte - 256 if byte > 127 else byte


@kernel_part
def _predict_sample(state: PredictorState, row: int) -> None:
    """Predict the next sample by regression, by the long filter behind it, and by a line."""
    r, around, prediction = state.rows[row], state.neighbours[row], state.predictions[row]
    channels = r.place[UNIT] // 2
    channel = min(r.samples % channels, CHANNELS - 1)
    before = state.samples[row, r.samples : r.samples + CASCADE]  # the newest last
    own = FACTORS if channels == 1 else FACTORS - 12  # the rest sees the channel before
    for i in range(FACTORS):
        back = 1 + (i - own) * channels if i >= own else (1 + i) * channels
        around[i] = before[CASCADE - back] if back <= CASCADE else 0.0
    fitted = _dot(state.factors[row, channel], around)
    prediction.means[0] = fitted
    prediction.means[1] = fitted + _dot(state.cascade[row, channel], before)
    prediction.means[2] = 2.0 * around[0] - around[1]
    for i in range(REGRESSIONS):
        errors = state.errors[row, i, channel]
        prediction.widths[i] = 0.5 * WIDTH * (errors[0] + errors[1]) + 0.2


@kernel_part
def _hash_sample(state: PredictorState, row: int) -> None:
    """Contexts of a sample's byte: what the prediction leaves for it, coarse and fine, with the
    level of the errors; the high byte before a low one."""
    r, prediction = state.rows[row], state.predictions[row]
    level = min(int(math.log2(1.0 + prediction.widths[1])), 15)
    mean = int(min(max(math.floor(prediction.means[1]), -32768.0), 32767.0))
    size = r.place[SIZE]
    if r.place[IS_LOW]:
        prediction.high = _signed(int(np.int64(state.bytes[row, size - 1]))) if size else 0
        rest = min(max(mean - 256 * prediction.high, -64), 320) + 64
        prediction.hashes[0] = _stir(np.uint64(1), 16 * (rest >> 2) + level)
        prediction.hashes[1] = _stir(np.uint64(2), prediction.high + 128)
    else:
        prediction.hashes[0] = _stir(np.uint64(3), 16 * ((mean >> 4) + 2048) + level)
        prediction.hashes[1] = _stir(np.uint64(4), 16 * ((mean >> 8) + 128) + level)
    prediction.contexts = 2


@kernel_part
def _learn_sample(state: PredictorState, row: int, sample: int) -> None:
    """Take a sample into the errors, the regression and the long filter."""
    r, prediction = state.rows[row], state.predictions[row]
    channels = r.place[UNIT] // 2
    channel = min(r.samples % channels, CHANNELS - 1)
    for i in range(REGRESSIONS):
        error, errors = abs(sample - prediction.means[i]), state.errors[row, i, channel]
        errors[0] += FAST_DECAY * (error - errors[0])
        errors[1] += SLOW_DECAY * (error - errors[1])
    _add_products(state.moments[row, channel], state.neighbours[row], sample)
    before = state.samples[row, r.samples : r.samples + CASCADE]
    step = STEP * (sample - prediction.means[1]) / (1.0 + _dot(before, before) / CASCADE)
    cascade = state.cascade[row, channel]
    for i in range(CASCADE):
        cascade[i] += step * before[i]
    state.samples[row, CASCADE + r.samples] = sample
    r.samples += 1
    if r.samples // channels % SAMPLE_PERIOD == 0:
        _solve(state, row, channel, FACTORS, SAMPLE_RIDGE)


# --- least squares ---


@_sum_kernel
def _dot(a: Doubles, b: Doubles) -> float:
    total = 0.0
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@kernel_part
def _add_products(moments: Doubles, around: Doubles, value: float) -> None:
    """Let the sums of products fade, and add those of new neighbours [f] and what came there."""
    for i in range(len(around)):
        of_row, factor = moments[i], around[i]
        for j in range(i + 1):
            of_row[j] = MEMORY * of_row[j] + factor * around[j]
        of_row[FACTORS] = MEMORY * of_row[FACTORS] + factor * value


@kernel_part
def _solve(state: PredictorState, row: int, channel: int, count: int, ridge: float) -> None:
    """Fit the factors of a channel to its sums by Cholesky's decomposition; those before stay
    where it fails."""
    moments, lower = state.moments[row, channel], state.solver[row]
    for i in range(count):
        for j in range(i + 1):
            value = moments[i, j] - _dot(lower[i, :j], lower[j, :j])
            if i == j:
                value += ridge
                if value <= 1e-9:
                    return
                lower[i, i] = math.sqrt(value)
            else:
                lower[i, j] = value / lower[j, j]
    factors = state.factors[row, channel]
    for i in range(count):
        lower[i, FACTORS] = (moments[i, FACTORS] - _dot(lower[i, :i], lower[:i, FACTORS])) / lower[
            i, i
        ]
    for i in range(count - 1, -1, -1):
        value = lower[i, FACTORS]
        for k in range(i + 1, count):
            value -= lower[k, i] * factors[k]
        factors[i] = value / lower[i, i]

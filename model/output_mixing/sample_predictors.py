"""Predictors of samples, with stages behind one another as in Monkey's Audio and OptimFROG.

    1. least squares over the last 32 samples, fitted with exponential forgetting
    2. a filter of 256 normalised steps on what that left of the samples before
    3. a filter of 16 on what both left
    4. one of 8 on what all three left

The sum of the first three is the best single prediction of most sounds, and has a distribution
twice, with a width that follows the errors slowly and at once. Beside it stand the first stage
alone, the sum of all four, and least squares over fewer samples that forget sooner.
"""

from __future__ import annotations

import math

import numpy as np

from bytelm.model.codec_features.layout import IS_LOW, SIZE, UNIT
from bytelm.model.numba_kernels import kernel_part
from bytelm.model.output_mixing.contexts import stir
from bytelm.model.output_mixing.least_squares import add_products, add_scaled, dot, solve
from bytelm.model.output_mixing.state import (
    CHANNELS,
    FACTORS,
    REGRESSIONS,
    TAPS,
    PredictorState,
)

MEMORIES = (0.998, 0.985)
"""Share of the sums that stays at each sample, of the long regression and the short one."""
SHORT_FACTORS = 16
PERIODS = (8, 4)
"""Samples with the same factors."""
RIDGE = 1.0
STAGE_TAPS, STEPS = (TAPS, 16, 8), (0.0014, 0.005, 0.008)
"""Values before that a filter reads, and the step of its normalised gradient."""
FIRST_FIT = 96
"""Samples that the filters leave out, as no regression predicted them."""
FITTED, BEST, SHORT, LAST, SUDDEN = range(5)
"""Predictions: the first stage, the sum of three, the short regression, the sum of four, and the
sum of three again."""
FASTEST_DECAY, FAST_DECAY, SLOW_DECAY = 0.25, 0.06, 0.008
WIDTH = 0.6
"""Width of a logistic distribution for a mean absolute error of 1."""


@kernel_part
def signed(byte: int) -> int:
    """A byte read as two's complement, -128 to 127."""
    return byte - 256 if byte > 127 else byte


@kernel_part
def predict_sample(state: PredictorState, row: int) -> None:
    """Predict the next sample by the stages and by the short regression."""
    r, around, prediction = state.rows[row], state.neighbours[row], state.predictions[row]
    channels = r.place[UNIT] // 2
    channel = min(r.samples % channels, CHANNELS - 1)
    before = state.samples[row, r.samples : r.samples + TAPS]  # the newest last
    own = FACTORS if channels == 1 else FACTORS - 12  # the rest sees the channel before
    for i in range(FACTORS):
        back = 1 + (i - own) * channels if i >= own else (1 + i) * channels
        around[i] = before[TAPS - back] if back <= TAPS else 0.0
    fitted = _clip(dot(state.factors[row, 0, channel], around))
    r.sums[0] = fitted
    for i in range(len(STAGE_TAPS)):
        rests = state.rests[row, i, r.samples + TAPS - STAGE_TAPS[i] : r.samples + TAPS]
        r.sums[i + 1] = r.sums[i] + dot(state.filters[row, channel, i, : STAGE_TAPS[i]], rests)
    prediction.regressions = REGRESSIONS
    prediction.means[FITTED] = fitted
    prediction.means[BEST] = prediction.means[SUDDEN] = _clip(r.sums[2])
    prediction.means[LAST] = _clip(r.sums[3])
    short = state.factors[row, 1, channel, :SHORT_FACTORS]
    prediction.means[SHORT] = _clip(dot(short, around[:SHORT_FACTORS]))
    for i in range(SUDDEN):
        errors = state.errors[row, i, channel]
        prediction.widths[i] = 0.5 * WIDTH * (errors[0] + errors[1]) + 0.2
    prediction.widths[SUDDEN] = WIDTH * state.errors[row, SUDDEN, channel, 0] + 0.2


@kernel_part
def _clip(value: float) -> float:
    """The nearest value that a sample can have."""
    return min(max(value, -32768.0), 32767.0)


@kernel_part
def hash_sample(state: PredictorState, row: int) -> None:
    """Contexts of a sample's byte: what the prediction leaves for it, coarse and fine, with the
    level of the errors; the high byte before a low one."""
    r, prediction = state.rows[row], state.predictions[row]
    level = min(int(math.log2(1.0 + prediction.widths[BEST])), 15)
    mean = math.floor(prediction.means[BEST])
    size = r.place[SIZE]
    if r.place[IS_LOW]:
        prediction.high = signed(int(np.int64(state.bytes[row, size - 1]))) if size else 0
        rest = min(max(mean - 256 * prediction.high, -64), 320) + 64
        prediction.hashes[0] = stir(np.uint64(1), 16 * (rest >> 2) + level)
        prediction.hashes[1] = stir(np.uint64(2), prediction.high + 128)
    else:
        prediction.hashes[0] = stir(np.uint64(3), 16 * ((mean >> 4) + 2048) + level)
        prediction.hashes[1] = stir(np.uint64(4), 16 * ((mean >> 8) + 128) + level)
    prediction.contexts = 2


@kernel_part
def learn_sample(state: PredictorState, row: int, sample: int) -> None:
    """Take a sample into the errors, the regressions and the filters."""
    r, prediction = state.rows[row], state.predictions[row]
    channels = r.place[UNIT] // 2
    channel = min(r.samples % channels, CHANNELS - 1)
    for i in range(SUDDEN):
        error, errors = abs(sample - prediction.means[i]), state.errors[row, i, channel]
        errors[0] += FAST_DECAY * (error - errors[0])
        errors[1] += SLOW_DECAY * (error - errors[1])
    errors = state.errors[row, SUDDEN, channel]
    errors[0] += FASTEST_DECAY * (abs(sample - prediction.means[SUDDEN]) - errors[0])
    for i in range(len(STAGE_TAPS)):
        rests = state.rests[row, i, r.samples + TAPS - STAGE_TAPS[i] : r.samples + TAPS]
        power = 1.0 + dot(rests, rests) / STAGE_TAPS[i]
        step = STEPS[i] * (sample - r.sums[i + 1]) / power
        add_scaled(state.filters[row, channel, i, : STAGE_TAPS[i]], rests, step)
        is_fitted = r.samples >= FIRST_FIT * channels
        state.rests[row, i, TAPS + r.samples] = sample - r.sums[i] if is_fitted else 0.0
    state.samples[row, TAPS + r.samples] = sample
    r.samples += 1
    for i in range(len(MEMORIES)):
        count = SHORT_FACTORS if i else FACTORS
        moments = state.moments[row, i, channel]
        add_products(moments, state.neighbours[row, :count], sample, MEMORIES[i], 1.0)
        if r.samples // channels % PERIODS[i] == 0:
            solve(moments, state.factors[row, i, channel, :count], state.solver[row], RIDGE)

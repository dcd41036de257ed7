"""Predictors of the next byte of a row, from the ids before it, in machine code.

A row's state machine takes id after id with their places in their payloads, and leaves a record of
`state.PREDICTION` for the next one. Nothing here depends on a network.

    text     the last bytes and words as contexts; the latest earlier occurrence of the last bytes
    pixels   predictions of each channel and contexts of what stands around; matches
    samples  predictions by the samples before and contexts of what these leave

The kernels of this file have parts in those by kind: see `numba_kernels`.

Shapes:
    B rows    n ids of a part of a row    other letters: see `state`
"""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from bytelm.model.codec_features.layout import IS_LOW, KIND, PLACES, SIZE
from bytelm.model.codec_features.state import NO_PAYLOAD, PIXELS, SAMPLES
from bytelm.model.numba_kernels import compiling, kernel, kernel_part
from bytelm.model.output_mixing import (
    contexts,
    least_squares,
    pixel_predictors,
    sample_predictors,
    state,
    text_predictors,
)
from bytelm.model.output_mixing.contexts import LONGEST_MATCH, find_match
from bytelm.model.output_mixing.pixel_predictors import learn_pixel, predict_pixel
from bytelm.model.output_mixing.sample_predictors import (
    hash_sample,
    learn_sample,
    predict_sample,
    signed,
)
from bytelm.model.output_mixing.state import (
    PREDICTION,
    REGRESSIONS,
    TAPS,
    PredictorState,
    new_predictors,
)
from bytelm.model.output_mixing.text_predictors import hash_text, push_text

Ints = npt.NDArray[np.int64]
Places = npt.NDArray[np.int32]
Predictions = npt.NDArray[np.void]
Row = Any
"""A record of `state.ROW`."""

TEXT_MATCH, PIXEL_MATCH = 5, 6
"""Bytes that a match has in common."""
FIRST_ERROR, FIRST_SAMPLE_ERROR = 6.0, 200.0

_kernel = partial(
    kernel,
    parts=[contexts, least_squares, pixel_predictors, sample_predictors, state, text_predictors],
)

# --- what Python calls ---


@functools.cache
def compile_kernels() -> None:
    """Compile the kernels, or load them where they were compiled before."""
    with compiling():
        state, ids = new_predictors(1, 16), np.zeros(1, np.int64)
        places = np.zeros((1, PLACES), np.int32)
        predict_ids(state, ids, ids, places, np.zeros(1, PREDICTION))


@_kernel
def predict_ids(
    state: PredictorState, rows: Ints, ids: Ints, places: Places, predictions: Predictions
) -> None:
    """Predict ids of rows, one after another.

    A row's id is learned when its next one is predicted: where it is not known yet, it may be set
    in `state.rows` until then.

    Args:
        rows: [n] whose id each is.
        ids: [n].
        places: [n, PLACES].
        predictions: [n] of PREDICTION, written, each from the ids before it.
    """
    for index in range(len(rows)):
        row = rows[index]
        _learn_id(state, row)
        _predict(state, row, places[index])
        predictions[index] = state.predictions[row]
        state.rows[row].id = ids[index]


# --- ids ---


@kernel_part
def _predict(state: PredictorState, row: int, place: Places) -> None:
    r, prediction = state.rows[row], state.predictions[row]
    for column in range(PLACES):
        r.place[column] = place[column]
    prediction.kind, prediction.is_low = place[KIND], place[IS_LOW]
    prediction.size, prediction.expected = r.place[SIZE], -1
    if place[KIND] == NO_PAYLOAD:
        return
    if r.place[SIZE] == 0:
        _begin_payload(state, row)
    if place[KIND] == SAMPLES:
        if not place[IS_LOW]:
            predict_sample(state, row)
        hash_sample(state, row)
        return
    if place[KIND] == PIXELS:
        predict_pixel(state, row)
        find_match(state, row, PIXEL_MATCH)
    else:
        find_match(state, row, TEXT_MATCH)
        hash_text(state, row)


@kernel_part
def _begin_payload(state: PredictorState, row: int) -> None:
    r = state.rows[row]
    r.match, r.match_length, r.samples, r.activity = -1, 0, 0, 0
    r.line = r.line_before = r.marks = r.letters = 0
    r.word = r.word_before = r.word_second = 0
    state.positions[row] = 0
    state.samples[row, :TAPS] = 0.0
    state.rests[row, :, :TAPS] = 0.0
    state.moments[row] = 0.0
    if r.place[KIND] == PIXELS:
        state.blocks[row] = 0.0
    state.factors[row] = 0.0
    state.filters[row] = 0.0
    state.errors[row] = FIRST_SAMPLE_ERROR if r.place[KIND] == SAMPLES else FIRST_ERROR
    for i in range(REGRESSIONS):
        state.predictions[row].means[i] = 0.0
        state.predictions[row].widths[i] = FIRST_SAMPLE_ERROR


@kernel_part
def _learn_id(state: PredictorState, row: int) -> None:
    """Learn a row's latest id; one above 255 stands for the byte 0."""
    r = state.rows[row]
    size, kind = r.place[SIZE], r.place[KIND]
    if kind == NO_PAYLOAD:
        return
    byte = r.id if r.id < 256 else 0
    state.bytes[row, size] = byte
    if kind == SAMPLES:
        if r.place[IS_LOW] and size:
            learn_sample(state, row, 256 * signed(int(np.int64(state.bytes[row, size - 1]))) + byte)
        return
    if r.match >= 0:
        is_hit = state.bytes[row, r.match] == byte
        r.match = r.match + 1 if is_hit else -1
        r.match_length = min(r.match_length + 1, LONGEST_MATCH)
    if kind == PIXELS:
        learn_pixel(state, row, byte)
    else:
        push_text(state, row, byte)

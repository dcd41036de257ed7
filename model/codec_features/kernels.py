"""Codec features by a state machine that reads rows id by id, in machine code.

A row's state is a record and slices of arrays. `push_id` takes the next id of a row and leaves the
features of the id after it; whole rows and the steps of a decoder both run it. All kernels stand in
this file: see `numba_kernels`.

Matches: the candidate is the byte that followed the latest earlier occurrence of the last k bytes
of the payload; its run is how many bytes in a row such candidates have just predicted. A model of
patches hardly learns to copy, since the earlier bytes lie at other positions of their patches.

Linear prediction: FLAC sends the coefficients of its predictors. Here they follow from the last
samples, anew for each block, so that there is nothing to send (backward adaptation, as in ITU-T
G.728). All but the recursion is in whole numbers, and its operations have one order, so that a
prediction is the same on every machine.

Shapes:
    B rows of up to T ids    n ids of a part of a row    P ids in a patch    J = FEATURES
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from bytelm.model.codec_features import layout, tables
from bytelm.model.codec_features.layout import (
    AUDIO,
    DEEP,
    FEATURES,
    IMAGE,
    MATCH_LENGTHS,
    MATCHES,
    NONE,
    OPENING_LENGTHS,
    PAD,
    PHASE,
    PLACES,
    PLANAR,
    RASTER,
    RUNS,
    S16BE,
    TEXT,
)
from bytelm.model.codec_features.state import (
    BYTES,
    LONGEST_OPENING,
    NO_PAYLOAD,
    ORDER,
    PIXELS,
    SAMPLES,
    WINDOW,
    FeatureState,
    new_state,
)
from bytelm.model.numba_kernels import compiling, kernel, kernel_part

Ids = npt.NDArray[np.int64]
Features = npt.NDArray[np.int16]
Places = npt.NDArray[np.int32]
Row = Any
"""A record of `state.ROW`."""

# --- constants ---

_OPENING_LENGTHS = tuple(OPENING_LENGTHS[opener] for opener in (TEXT, IMAGE, AUDIO))
_SUM_BLOCK = 16
"""Products that the recursion adds up in one go, as PyTorch did where models were trained."""
_HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio


NO_DOCUMENTS = np.empty(0, np.int32)
NO_PLACES = np.empty((0, PLACES), np.int32)

# --- what Python calls ---


@functools.cache
def compile_kernels() -> None:
    """Compile the kernels, or load them where they were compiled before.

    Processes that are forked later have them.
    """
    with compiling():
        state = new_state(1, 1, 2)
        features = np.empty((1, FEATURES), np.int16)
        read_row(state, 0, np.zeros(1, np.int64), NO_DOCUMENTS, features, NO_PLACES)
        push_ids(tuple(state), np.zeros(1, np.int64))
        write_places(state, np.empty((1, PLACES), np.int32))


@kernel
def push_ids(arrays: tuple[Any, ...], ids: Ids) -> None:
    """Take the next id of every row, [B].

    arrays: a FeatureState as a plain tuple, which numba unpacks in half of the time.
    """
    state = FeatureState(*arrays)
    for row in range(len(ids)):
        push_id(state, row, ids[row])


@kernel
def read_row(
    state: FeatureState,
    row: int,
    ids: Ids,
    document: npt.NDArray[np.int32],
    features: Features,
    places: Places,
) -> None:
    """Take a row's next ids and write the features of each, and their places.

    Args:
        ids: [n].
        document: [n / P] document of each patch of ids, from the start of a patch; NO_DOCUMENTS
            where all ids belong to the current one.
        features: [n, J], written.
        places: [n, PLACES], written; NO_PLACES where nobody reads them.
    """
    for index in range(len(ids)):
        for column in range(FEATURES):
            features[index, column] = state.features[row, column]
        if len(places):
            _write_place(state.rows[row], places[index])
        push_id(state, row, ids[index])
        if len(document) and state.rows[row].position == 0:
            patch = index // state.patch
            if patch + 1 == len(document) or document[patch + 1] != document[patch]:
                _end_document(state, row)


@kernel
def write_places(state: FeatureState, places: Places) -> None:
    """Write the places of every row's next id, [B, PLACES]."""
    for row in range(len(places)):
        _write_place(state.rows[row], places[row])


@kernel_part
def _write_place(r: Row, place: npt.NDArray[np.int32]) -> None:
    """Write the place [PLACES] of a row's next id; all 0 outside of payloads."""
    place[:] = 0
    if _is_in_payload(r):
        place[layout.KIND], place[layout.UNIT], place[layout.LINE] = r.kind, r.unit, r.line
        place[layout.PLACE], place[layout.SIZE] = r.place, r.size
        place[layout.IS_LOW] = (r.size + r.leading) % 2


@kernel_part
def _is_in_payload(r: Row) -> bool:
    """Whether a row's next id is read as a byte of a payload."""
    return r.kind != NO_PAYLOAD and not r.padding <= r.patch < r.begin


@kernel_part
def push_id(state: FeatureState, row: int, id_: int) -> None:
    """Take a row's next id; `state.features[row]` then has the features of the one after it."""
    r = state.rows[row]
    assert r.count < state.bytes.shape[1]
    if r.position == 0 and id_ >= PAD:
        _see_opening(r, id_, state.patch)
    offset = r.count - r.opened * state.patch
    if offset < LONGEST_OPENING:
        r.opening[offset] = id_
    byte = id_ if id_ < PAD else 0
    state.bytes[row, r.count] = byte
    r.count += 1
    if _is_in_payload(r):
        _push_byte(state, row, byte)
    r.position += 1
    if r.position == state.patch:
        _end_patch(state, row)


# --- framing ---


@kernel_part
def _see_opening(r: Row, first: int, patch: int) -> None:
    """Note that the next patch opens with an id above 255.

    Such a patch opens the next segment or ends the payload; its ids still count as payload, since
    its first id is not known before it. Patches of PAD may lie before a payload, in rows that were
    framed for a larger patch than the model's.
    """
    if first == PAD and r.patch == r.begin:
        r.begin += 1
        return
    length = _OPENING_LENGTHS[first - TEXT] if TEXT <= first <= AUDIO else 0
    r.opened = r.patch
    r.padding = r.begin = r.patch + (length + patch - 1) // patch if length else -1


@kernel_part
def _end_patch(state: FeatureState, row: int) -> None:
    """End a payload behind the patch of what follows it; begin one behind its opening."""
    r = state.rows[row]
    if r.opened == r.patch:
        _end_payload(state, row)
    r.patch += 1
    r.position = 0
    if r.padding == r.patch:
        _begin_payload(state, row)


@kernel_part
def _end_payload(state: FeatureState, row: int) -> None:
    state.rows[row].kind = NO_PAYLOAD
    for column in range(FEATURES):
        state.features[row, column] = NONE


@kernel_part
def _end_document(state: FeatureState, row: int) -> None:
    """Begin another document: the next id belongs to it."""
    r = state.rows[row]
    r.opened = r.padding = r.begin = -1
    _end_payload(state, row)


@kernel_part
def _begin_payload(state: FeatureState, row: int) -> None:
    """Read the opening, and give the features of the first byte of the payload."""
    r = state.rows[row]
    r.size = r.samples = r.channel = r.frame = r.leading = r.place = 0
    r.key = np.uint64(0)
    for i in range(3):
        r.runs[i] = r.predictions[i] = 0
    _read_header(r)
    if r.kind == SAMPLES:
        for channel in range(r.unit // 2):
            for i in range(ORDER):
                state.coefficients[row, channel, i] = 0
        for column in range(PHASE - len(tables.ERROR_SPANS), PHASE):
            state.features[row, column] = 0
        if not r.leading:
            _predict_sample(state, row)
        _write_sample_features(state, row)
    else:
        if r.kind == PIXELS:
            _write_pixel_features(state, row)
        for column in range(RUNS, FEATURES):
            state.features[row, column] = 0


@kernel_part
def _read_header(r: Row) -> None:
    """Set how the payload is read; as bytes where the header is broken or says no more."""
    r.kind = BYTES
    opening = r.opening
    if opening[0] == TEXT:
        return
    skipped = 0  # bytes of the payload before the first one present in the row
    for i in range(1, LONGEST_OPENING):
        if opening[i] >= PAD:
            return
        skipped = 256 * skipped + opening[i] if i >= LONGEST_OPENING - 4 else 0
    width, channels, view = 256 * opening[1] + opening[2], opening[5], opening[6]
    if channels == 0:
        return
    if opening[0] == IMAGE and width > 1 and view in (RASTER, PLANAR, DEEP):
        r.kind = PIXELS
        r.unit = 1 if view == PLANAR else channels if view == RASTER else 2 * channels
        r.line = width * r.unit
    elif opening[0] == AUDIO and view == S16BE:
        r.kind = SAMPLES
        r.unit = 2 * channels
        r.leading = skipped % 2
    else:
        return
    r.place = skipped % r.unit


# --- payloads ---


@kernel_part
def _push_byte(state: FeatureState, row: int, byte: int) -> None:
    """Take the next byte of the payload."""
    r = state.rows[row]
    r.size += 1
    if r.kind == SAMPLES:
        r.place = r.place + 1 if r.place + 1 < r.unit else 0
        _push_sample_byte(state, row, byte)
        _write_sample_features(state, row)
        return
    _push_match_byte(state, row, byte)
    if r.kind == PIXELS:
        r.place = r.place + 1 if r.place + 1 < r.unit else 0
        _write_pixel_features(state, row)


@kernel_part
def _clamp(value: int, low: int, high: int) -> int:
    """The nearest value in [low, high]."""
    return min(max(value, low), high)


@kernel_part
def _push_match_byte(state: FeatureState, row: int, byte: int) -> None:
    """Extend or end the runs of the candidates, find the next ones and write both."""
    r, features = state.rows[row], state.features
    start = r.count - r.size
    r.key = r.key << np.uint64(8) | np.uint64(byte)
    state.keys[row, r.count] = r.key
    for column in range(len(MATCH_LENGTHS)):
        k = MATCH_LENGTHS[column]
        run = (r.runs[column] + 1) * (features[row, MATCHES + column] == byte)
        r.runs[column] = run
        longest = len(tables.RUN_MAGNITUDES) - 1
        features[row, RUNS + column] = tables.RUN_MAGNITUDES[min(run, longest)]
        if r.size < k:
            continue
        slot = _find_slot(state, row, column)
        follower = state.followers[row, column, slot]
        candidate = state.bytes[row, follower]
        # A key of an earlier payload has a slot, but no candidate.
        features[row, MATCHES + column] = candidate if follower > start else NONE
        state.followers[row, column, slot] = r.count


@kernel_part
def _find_slot(state: FeatureState, row: int, column: int) -> int:
    """The slot of the last k bytes, or a free one if they are new. At most half of the slots are
    taken."""
    unused = np.uint64(64 - 8 * MATCH_LENGTHS[column])
    key = state.rows[row].key << unused
    last = state.followers.shape[2] - 1
    slot = np.int64(key * _HASH_FACTOR >> np.uint64(32)) & last
    while True:
        follower = state.followers[row, column, slot]
        if follower == 0 or state.keys[row, follower] << unused == key:
            return slot
        slot = (slot + 1) & last


# --- pixels ---


@kernel_part
def _write_pixel_features(state: FeatureState, row: int) -> None:
    """Eight predictions of an image's next byte, and the place of the byte in its pixel.

    In order: the median of plane, left and above (JPEG-LS); the plane left + above - corner; the
    previous byte plus the step that the pixel above took from that channel to this one; the same
    with the pixel to the left; left; above; corner (above left); above right.
    """
    r, features = state.rows[row], state.features
    pixel, line = r.unit, r.line
    left, above = _back(state, row, pixel), _back(state, row, line)
    corner, previous = _back(state, row, line + pixel), _back(state, row, 1)
    plane = left + above - corner
    features[row, 0] = _clamp(plane, min(left, above), max(left, above))
    features[row, 1] = _clamp(plane, 0, 255)
    features[row, 2] = _clamp(previous + above - _back(state, row, line + 1), 0, 255)
    features[row, 3] = _clamp(previous + left - _back(state, row, pixel + 1), 0, 255)
    features[row, 4] = left
    features[row, 5] = above
    features[row, 6] = corner
    features[row, 7] = _back(state, row, line - pixel)
    features[row, PHASE] = r.place


@kernel_part
def _back(state: FeatureState, row: int, distance: int) -> int:
    """The byte at a distance before the next one; 0 where the payload has none."""
    r = state.rows[row]
    return state.bytes[row, r.count - distance] if distance <= r.size else 0


# --- samples ---


@kernel_part
def _push_sample_byte(state: FeatureState, row: int, byte: int) -> None:
    """Take the next byte of a sound; predict the next sample after the low one."""
    r = state.rows[row]
    if (r.size + r.leading) % 2:
        return  # a high byte
    if r.size > 1:
        sample = 256 * _signed(_back(state, row, 2)) + byte
        sums, index, channels = state.error_sums, r.samples, r.unit // 2
        earlier = sums[row, index - channels] if index >= channels else 0
        sums[row, index] = earlier + abs(sample - r.predictions[0])
        state.samples[row, index] = sample
        r.samples += 1
        r.channel += 1
        if r.channel == channels:
            r.channel = 0
            r.frame += 1
    _predict_sample(state, row)


@kernel_part
def _signed(byte: int) -> int:
    """A byte read as two's complement, -128 to 127."""
    return byte - 256 if byte > 127 else byte


@kernel_part
def _predict_sample(state: FeatureState, row: int) -> None:
    """Predict the next sample: linear prediction, the line through the channel's last two samples,
    the last one. Write the magnitudes of the errors of the linear prediction before it."""
    r, samples, sums = state.rows[row], state.samples, state.error_sums
    channels, channel, count = r.unit // 2, r.channel, min(ORDER, r.frame)
    newest = r.samples - channels
    if r.frame and r.frame % tables.PREDICTION_BLOCK == 0:
        _solve_coefficients(state, row)
    weighted = 0
    for i in range(count):
        weighted += state.coefficients[row, channel, i] * samples[row, newest - i * channels]
    last = samples[row, newest] if r.frame > 0 else 0
    before_last = samples[row, newest - channels] if r.frame > 1 else 0
    rounded = (weighted + (1 << tables.FRACTION_BITS - 1)) >> tables.FRACTION_BITS
    r.predictions[0] = _clamp(rounded, -32768, 32767)
    r.predictions[1] = _clamp(2 * last - before_last, -32768, 32767)
    r.predictions[2] = last
    for i in range(len(tables.ERROR_SPANS)):
        span = tables.ERROR_SPANS[i]
        total = sums[row, newest] if r.frame > 0 else 0
        if r.frame > span:
            total -= sums[row, newest - span * channels]
        state.features[row, PHASE - len(tables.ERROR_SPANS) + i] = _error_magnitude(total, i)


@kernel_part
def _write_sample_features(state: FeatureState, row: int) -> None:
    """Two numbers from each predicted sample, and the place of the next byte in its frame.

    Before the high byte: both bytes of the prediction. Before the low byte, once the high one is
    known: the rest of the prediction above 256 * high, and by how much the prediction's high byte
    is more than it, plus 128.
    """
    r, features = state.rows[row], state.features
    is_low = (r.size + r.leading) % 2
    high = _signed(_back(state, row, 1))
    for i in range(len(r.predictions)):
        sample = r.predictions[i]
        if is_low:
            features[row, 2 * i] = _clamp(sample - 256 * high, 0, 255)
            features[row, 2 * i + 1] = _clamp((sample >> 8) - high + 128, 0, 255)
        else:
            features[row, 2 * i] = sample >> 8 & 255
            features[row, 2 * i + 1] = sample & 255
    features[row, PHASE] = r.place


@kernel_part
def _error_magnitude(total: int, span: int) -> int:
    """Magnitude of the mean of ERROR_SPANS[span] errors."""
    least = 0
    for step in (128, 64, 32, 16, 8, 4, 2, 1):  # halving without branches
        least += step * (total >= tables.ERROR_THRESHOLDS[span, least + step - 1])
    return least


@kernel_part
def _solve_coefficients(state: FeatureState, row: int) -> None:
    """Coefficients that predict a channel's next block best from its samples before it."""
    r, window, recursion = state.rows[row], state.window, state.recursion
    channels, end = r.unit // 2, r.samples
    missing = max(0, WINDOW - r.frame)
    for i in range(missing):
        window[row, i] = 0
    for i in range(missing, WINDOW):
        window[row, i] = state.samples[row, end - (WINDOW - i) * channels] * tables.TAPER[i]
    for lag in range(ORDER + 1):
        total = np.int64(0)  # below 2^59
        for i in range(WINDOW - lag):
            total += np.int64(window[row, lag + i]) * np.int64(window[row, i])
        recursion[row, 0, lag] = total
    _solve_by_levinson(recursion, row)
    for i in range(ORDER):
        factor = recursion[row, 1, i] * (1 << tables.FRACTION_BITS)
        state.coefficients[row, r.channel, i] = np.int64(np.rint(factor))


@kernel_part
def _solve_by_levinson(recursion: npt.NDArray[np.float64], row: int) -> None:
    """Levinson's recursion for the normal equations: factors (that of the newest sample first) in
    recursion[row, 1] from correlations by lag in recursion[row, 0]."""
    error = recursion[row, 0, 0] * (1 + tables.NOISE_FLOOR) + 1.0
    for i in range(ORDER):
        explained = rest = 0.0
        for j in range(min(i, _SUM_BLOCK)):
            explained += recursion[row, 1, j] * recursion[row, 0, i - j]
        for j in range(_SUM_BLOCK, i):
            rest += recursion[row, 1, j] * recursion[row, 0, i - j]
        reflection = (recursion[row, 0, i + 1] - (rest + explained)) / error
        for j in range(i):
            recursion[row, 2, j] = recursion[row, 1, i - 1 - j]
        for j in range(i):
            recursion[row, 1, j] -= reflection * recursion[row, 2, j]
        recursion[row, 1, i] = reflection
        error = error * (1 - reflection * reflection)

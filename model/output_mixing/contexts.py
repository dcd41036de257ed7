"""Parts of the predictors of several kinds: hashes, bytes at a distance, matches."""

from __future__ import annotations

import numpy as np

from bytelm.model.codec_features.layout import SIZE
from bytelm.model.numba_kernels import kernel_part
from bytelm.model.output_mixing.state import MATCH_LEVELS, PredictorState

LONGEST_CHECK, LONGEST_MATCH = 32, 400
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio


@kernel_part
def stir(key: np.uint64, value: int) -> np.uint64:
    """A hash of another hash and a number."""
    mixed = (key ^ np.uint64(value)) * _FACTOR
    return mixed ^ (mixed >> np.uint64(29))


@kernel_part
def near(state: PredictorState, row: int, distance: int, otherwise: int) -> int:
    """The byte at a distance before the next one, or another value where the payload has none."""
    size = state.rows[row].place[SIZE]
    return int(np.int64(state.bytes[row, size - distance])) if 0 < distance <= size else otherwise


@kernel_part
def find_match(state: PredictorState, row: int, least: int) -> None:
    """Predict the byte by the match, or by the latest one of `least` bytes where it has ended."""
    r, data, prediction = state.rows[row], state.bytes[row], state.predictions[row]
    size = r.place[SIZE]
    if size >= least:
        key = np.uint64(0)
        for i in range(1, least + 1):
            key = stir(key, data[size - i])
        slot = np.int64(key >> np.uint64(40)) & (state.positions.shape[1] - 1)
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

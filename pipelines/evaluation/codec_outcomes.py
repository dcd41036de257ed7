"""How the codec features did for each id: a match or none, right or wrong, and by how much.

T ids of a row    J codec features of an id
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bytelm.modalities.base import Bytes
from bytelm.modalities.evaluation_head import Ints
from bytelm.model.codec_features.layout import MATCH_LENGTHS, MATCHES, NONE, PHASE, RUNS

ABSENT = 255
"""The outcome where the model reads no codec features."""


def codec_outcomes(features: npt.NDArray[np.int16] | None, ids: Ints) -> tuple[Bytes, Bytes]:
    """Index in `evaluation_head.MATCHES` and in `ERRORS` of every id of a row.

    Args:
        features: [T, J] as `compute_codec_features` gives them; None where the model reads none.
        ids: [T].
    Returns:
        [T] and [T]; ABSENT without features.
    """
    if features is None:
        return np.full(len(ids), ABSENT, np.uint8), np.full(len(ids), ABSENT, np.uint8)
    match, error = np.zeros(len(ids), np.uint8), np.zeros(len(ids), np.uint8)
    for column in range(len(MATCH_LENGTHS)):
        candidate = features[:, MATCHES + column]
        has_match = np.flatnonzero(candidate != NONE)
        is_wrong = candidate[has_match] != ids[has_match]
        match[has_match] = 1 + 2 * column + is_wrong
    predicted = np.flatnonzero(features[:, 0] != NONE)
    distance = np.abs(features[predicted, 0].astype(np.int32) - ids[predicted])
    is_sample = features[predicted, RUNS] == NONE
    is_high_byte = is_sample & (features[predicted, PHASE] % 2 == 0)
    # A high byte is in two's complement: 255 stands beside 0.
    distance = np.where(is_high_byte, np.minimum(distance, 256 - distance), distance)
    error[predicted] = 1 + _distance_bins()[np.minimum(distance, 255)]
    return match, error


def _distance_bins() -> Bytes:
    """[256] bin of each distance: 0, 1, 2 to 3, 4 to 7, and so on."""
    return np.array([distance.bit_length() for distance in range(256)], np.uint8)

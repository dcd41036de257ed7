"""State of the codec features of rows: what `kernels` reads and writes.

Shapes:
    B rows of up to T ids    J = FEATURES    P ids in a patch
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bytelm.model.codec_features.layout import FEATURES, MATCH_LENGTHS, NONE, OPENING_LENGTHS

NO_PAYLOAD, BYTES, PIXELS, SAMPLES = 0, 1, 2, 3
"""How the ids that follow are read."""
LONGEST_OPENING = max(OPENING_LENGTHS.values())
MOST_CHANNELS = 255

ORDER = 24
"""Samples that predict the next one."""
WINDOW = 512
"""Samples before a block whose correlations give its coefficients."""

ROW = np.dtype(
    [
        ("count", np.int64),  # ids of the row so far
        ("patch", np.int64),  # index of the patch of the next id
        ("position", np.int64),  # of the next id in its patch
        # The segment, by patch indices; -1 where it has no payload.
        ("opened", np.int64),  # the patch that opened it
        ("padding", np.int64),  # the patch after the opening
        ("begin", np.int64),  # the first patch of the payload, which PAD may delay
        ("opening", np.int64, (LONGEST_OPENING,)),  # its first ids
        # The payload.
        ("kind", np.int64),  # NO_PAYLOAD, BYTES, PIXELS or SAMPLES
        ("unit", np.int64),  # bytes of a pixel or of a frame (a sample of each channel)
        ("line", np.int64),  # bytes of a line of pixels
        ("place", np.int64),  # of the next byte in its unit
        ("leading", np.int64),  # bytes of a sound before its first whole sample: 0 or 1
        ("size", np.int64),  # bytes of the payload so far
        ("key", np.uint64),  # the last eight of them
        ("runs", np.int64, (len(MATCH_LENGTHS),)),  # bytes that candidates predicted in a row
        ("samples", np.int64),  # samples so far, of all channels
        ("channel", np.int64),  # of the next sample
        ("frame", np.int64),  # samples so far of that channel
        ("predictions", np.int64, (3,)),  # of the next sample
    ],
    align=True,
)
"""State of a row beside its arrays."""


class FeatureState(NamedTuple):
    """State of B rows of up to T ids. Threads may push ids into different rows at a time."""

    patch: int
    """P."""
    rows: npt.NDArray[np.void]
    """[B] of ROW."""
    bytes: npt.NDArray[np.uint8]
    """[B, T] ids; 0 for those above 255."""
    keys: npt.NDArray[np.uint64]
    """[B, T + 1] the eight bytes of the payload before each position, the last one lowest."""
    followers: npt.NDArray[np.int32]
    """[B, 3, slots] for each match length k a hash table of positions: the latest one for each k
    bytes before a position; 0 in free slots. Those of earlier payloads stay."""
    samples: npt.NDArray[np.int32]
    """[B, T / 2 + 1] samples of the payload, channels interleaved."""
    error_sums: npt.NDArray[np.int64]
    """[B, T / 2 + 1] errors of the linear prediction, summed up by channel."""
    coefficients: npt.NDArray[np.int64]
    """[B, MOST_CHANNELS, ORDER] of the current block, that of the newest sample first."""
    window: npt.NDArray[np.int32]
    """[B, WINDOW] scratch: a channel's last samples, weighted."""
    recursion: npt.NDArray[np.float64]
    """[B, 3, ORDER + 1] scratch: correlations by lag, factors, and the factors in reverse."""
    features: npt.NDArray[np.int16]
    """[B, J] of each row's next id."""


def new_state(batch: int, patch: int, length: int) -> FeatureState:
    """State of `batch` rows of up to `length` ids before their first one.

    Memory: 40 to 60 bytes an id and 50 KiB a row; the kernel gives only pages that are used.
    """
    slots = 16
    while slots < 2 * length:
        slots *= 2
    rows = np.zeros(batch, ROW)
    for field in ("opened", "padding", "begin"):
        rows[field] = -1
    return FeatureState(
        patch=patch,
        rows=rows,
        bytes=np.zeros((batch, length), np.uint8),
        keys=np.zeros((batch, length + 1), np.uint64),
        followers=np.zeros((batch, len(MATCH_LENGTHS), slots), np.int32),
        samples=np.zeros((batch, length // 2 + 1), np.int32),
        error_sums=np.zeros((batch, length // 2 + 1), np.int64),
        coefficients=np.zeros((batch, MOST_CHANNELS, ORDER), np.int64),
        window=np.zeros((batch, WINDOW), np.int32),
        recursion=np.zeros((batch, 3, ORDER + 1)),
        features=np.full((batch, FEATURES), NONE, np.int16),
    )

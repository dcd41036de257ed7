"""Noise in what a model reads: some payload bytes replaced, while it predicts the true ones.

A model is trained behind real bytes and draws behind its own, among which are wrong ones. Behind
noise it learns to go on as if the wrong bytes were not there. The noise is like the errors of
draws: runs of bytes that would fit elsewhere in the same payload, runs of pixels of one colour, and
single bytes of any value.

    L ids in a row
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from bytelm.modalities import framing
from bytelm.modalities.framing import Framed, ParsedSegment

CLEAN_ROWS = 0.25
"""Part of the rows that have no noise, so that the model also reads what it compresses."""
MEAN_RUN = 12
"""Mean length of a run, in bytes: four pixels or six samples."""
PHASE = 12
"""A multiple of the bytes of a sample and of a pixel, of 1, 2, 3 or 4 bytes: runs move by multiples
of it, so that a channel stays one, and a sample's upper byte an upper byte."""
FARTHEST = 128 * PHASE
"""Bytes from which a run is copied at most."""
SINGLE_SHARE = 0.25
"""Part of the runs in place of which one byte takes any value."""
COLOUR_SHARE = 0.25
"""Part of the runs of an image in place of which pixels have one colour, any one."""


def add_noise(row: Framed, shares: Mapping[str, float], seed: tuple[int, ...]) -> None:
    """Replace payload bytes of a row by noise; headers, ends and padding stay.

    Args:
        shares: mean share of the bytes, by modality; a row has none, or from next to none to
            2 / (1 - CLEAN_ROWS) times that.
        seed: it alone decides the noise of a row.
    """
    generator = np.random.default_rng(seed)
    if generator.random() < CLEAN_ROWS:
        return
    scale = generator.uniform(0.0, 2.0 / (1.0 - CLEAN_ROWS))
    for segment in framing.parse(row.ids, row.patch):
        share = scale * shares[segment.modality.name]
        _add_runs(row.ids[segment.payload], share, _pixel_bytes(segment), generator)


def _add_runs(
    payload: npt.NDArray[np.uint16], share: float, pixel: int, generator: np.random.Generator
) -> None:
    """Replace about `share` of a payload's bytes in place; 0 bytes of a pixel: of no image."""
    original, size = payload.copy(), len(payload)
    count = generator.poisson(share * size / MEAN_RUN)
    columns = (
        generator.integers(0, max(1, size), count),
        generator.geometric(1.0 / MEAN_RUN, count),
        PHASE * generator.integers(1, FARTHEST // PHASE + 1, count),
        generator.random(count),
    )
    for first, length, distance, kind in zip(*(c.tolist() for c in columns), strict=True):
        stop = min(first + length, size)
        if kind < SINGLE_SHARE:
            payload[first] = generator.integers(0, 256)
        elif pixel and kind < SINGLE_SHARE + COLOUR_SHARE:
            payload[first:stop] = np.resize(generator.integers(0, 256, pixel), stop - first)
        elif first >= distance:
            payload[first:stop] = original[first - distance : stop - distance]


def _pixel_bytes(segment: ParsedSegment) -> int:
    """Bytes that one pixel has next to each other in a segment's payload; 0 if it has no pixels."""
    values = segment.modality.view_value_bytes
    if segment.modality.name != "image" or segment.view not in values:
        return 0
    return values[segment.view] * (1 if segment.view == "planar" else segment.header.channels)

"""Noise in what a model reads: some payload bytes replaced, while it predicts the true ones.

A model is trained behind real bytes and draws behind its own, among which are wrong ones. Behind
noise it learns to go on as if the wrong bytes were not there. The noise is like the errors of
draws: runs of bytes that would fit elsewhere in the same payload, and single bytes of any value.

    L ids in a row
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bytelm.modalities.framing import PAYLOAD, Framed

MEAN_RUN = 12
"""Mean length of a run, in bytes: four pixels or six samples."""
PHASE = 12
"""A multiple of the bytes of a sample and of a pixel, of 1, 2, 3 or 4 bytes: runs move by multiples
of it, so that a channel stays one, and a sample's upper byte an upper byte."""
FARTHEST = 128 * PHASE
"""Bytes from which a run is copied at most."""
SINGLE_SHARE = 0.25
"""Part of the runs in place of which one byte takes any value."""


def add_noise(row: Framed, share: float, seed: tuple[int, ...]) -> None:
    """Replace payload bytes of a row by noise; headers, ends and padding stay.

    Args:
        share: mean share of the bytes; each row's own is uniform from 0 to twice that, so that some
            rows have next to none.
        seed: it alone decides the noise of a row.
    """
    generator = np.random.default_rng(seed)
    own_share = generator.uniform(0.0, 2.0 * share)
    for start, stop in _payloads(row):
        original = row.ids[start:stop].copy()
        size = len(original)
        count = generator.poisson(own_share * size / MEAN_RUN)
        first = generator.integers(0, size, count)
        length = generator.geometric(1.0 / MEAN_RUN, count)
        distance = PHASE * generator.integers(1, FARTHEST // PHASE + 1, count)
        byte = generator.integers(0, 256, count)
        is_single = generator.random(count) < SINGLE_SHARE
        for a, n, d, value, single in zip(first, length, distance, byte, is_single, strict=True):
            if single:
                row.ids[start + a] = value
            elif a >= d:
                run = original[a - d : a - d + n]
                row.ids[start + a : start + min(a + n, size)] = run[: size - a]


def _payloads(row: Framed) -> npt.NDArray[np.int64]:
    """[n, 2], first position and end of each run of payload bytes."""
    edges = np.flatnonzero(np.diff(row.role == PAYLOAD, prepend=False, append=False))
    return edges.reshape(-1, 2)

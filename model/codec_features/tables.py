"""Numbers of linear prediction, weights of a window of samples, and limits of magnitudes."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from bytelm.model.codec_features.state import WINDOW

PREDICTION_BLOCK = 16
"""Samples that are predicted with the same coefficients."""
FRACTION_BITS = 14
"""Coefficients are fixed-point numbers: 2^FRACTION_BITS stands for 1."""
NOISE_FLOOR = 2.0**-24
"""Power of the white noise added to a signal, as a share of the signal's: it keeps the normal
equations of silence and of pure tones solvable."""
ERROR_SPANS = (16, 128)
"""Samples over which the errors of linear prediction are averaged."""
STEPS_PER_DOUBLING = 16
"""Resolution of magnitudes."""


def _taper() -> npt.NDArray[np.int32]:
    """[WINDOW] weights of the samples before a block: less of older ones, and a short fall right
    before the block, where a step would look like a signal."""
    weight = np.sin(math.pi / 2 * (np.arange(WINDOW) + 0.5) / WINDOW)
    fall = WINDOW // 16
    weight[-fall:] *= np.cos(math.pi / 2 * np.arange(fall) / fall)
    return (1023 * weight).round().astype(np.int32)


def _thresholds(span: int) -> list[int]:
    """The least totals over `span` whose magnitude is 1, 2, ... 255.

    The magnitude is STEPS_PER_DOUBLING * log2(1 + total / span), rounded down, at most 255.
    """
    return [math.ceil(span * (2 ** (i / STEPS_PER_DOUBLING) - 1)) for i in range(1, 256)]


TAPER = _taper()
ERROR_THRESHOLDS = np.array([_thresholds(span) for span in ERROR_SPANS])
RUN_MAGNITUDES = np.searchsorted(
    np.array(_thresholds(1)), np.arange(_thresholds(1)[-1] + 1), side="right"
).astype(np.int16)

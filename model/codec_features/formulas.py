"""Predictions of a byte from its neighbours, each formula over an int or a tensor of them."""

import functools
import math
from bisect import bisect_right
from collections.abc import Callable

import torch

from bytelm.model.codec_features.layout import Number

ERROR_SPANS = (16, 128)
"""Samples over which the errors of linear prediction are averaged."""
STEPS_PER_DOUBLING = 16
"""Resolution of `magnitude`."""


def clamp(value: Number, low: int, high: int) -> Number:
    """The nearest value in [low, high]."""
    if isinstance(value, int):
        return low if value < low else high if value > high else value
    return value.clamp(low, high)


def clamp_byte(value: Number) -> Number:
    """The nearest byte."""
    return clamp(value, 0, 255)


def clamp_sample(value: Number) -> Number:
    """The nearest sample of 16 bits."""
    return clamp(value, -32768, 32767)


def median(a: Number, b: Number, c: Number) -> Number:
    """The middle one of three values."""
    if isinstance(a, int):
        return sorted((a, b, c))[1]
    return a.clamp(torch.minimum(b, c), torch.maximum(b, c))


def signed(byte: Number) -> Number:
    """A byte read as two's complement, -128 to 127."""
    return byte - (byte >> 7 << 8)


def image_predictions(back: Callable[[int], Number], pixel: int, line: int) -> tuple[Number, ...]:
    """Eight predictions of an image's next byte.

    In order: the median of plane, left and above (JPEG-LS); the plane left + above - corner; the
    previous byte plus the step that the pixel above took from that channel to this one; the same
    with the pixel to the left; left; above; corner (above left); above right.

    Args:
        back: back(n) gives the byte n before the next one, and 0 where the payload has none.
        pixel: bytes of a pixel.
        line: bytes of a line.
    """
    left, above, corner = back(pixel), back(line), back(line + pixel)
    previous = back(1)
    plane = left + above - corner
    return (
        median(plane, left, above),
        clamp_byte(plane),
        clamp_byte(previous + above - back(line + 1)),
        clamp_byte(previous + left - back(pixel + 1)),
        left,
        above,
        corner,
        back(line - pixel),
    )


def sample_predictions(
    linear: Number, last: Number, before_last: Number
) -> tuple[Number, Number, Number]:
    """Three predictions of a channel's next sample.

    In order: linear prediction, the line through the last two samples, the last sample.
    """
    return linear, clamp_sample(2 * last - before_last), last


def high_byte_predictions(sample: Number) -> tuple[Number, Number]:
    """Both bytes of a predicted sample, to predict the high byte."""
    return sample >> 8 & 255, sample & 255


def low_byte_predictions(sample: Number, high: Number) -> tuple[Number, Number]:
    """Prediction of the low byte by a predicted sample, once the high byte is known.

    In order: the rest of the prediction above 256 * `high` (signed), and by how much the high byte
    of the prediction is more than `high`, plus 128.
    """
    return clamp_byte(sample - 256 * high), clamp_byte((sample >> 8) - high + 128)


def magnitude(total: Number, span: int) -> Number:
    """STEPS_PER_DOUBLING * log2(1 + total / span), rounded down, at most 255."""
    if isinstance(total, int):
        return bisect_right(_thresholds(span), total)
    bounds = torch.tensor(_thresholds(span), device=total.device)
    return torch.searchsorted(bounds, total.contiguous(), right=True)


@functools.cache
def _thresholds(span: int) -> tuple[int, ...]:
    """The least totals whose `magnitude` is 1, 2, ... 255."""
    return tuple(math.ceil(span * (2 ** (i / STEPS_PER_DOUBLING) - 1)) for i in range(1, 256))

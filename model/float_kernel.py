"""Exponentials and logarithms in float32, as parts of kernels.

They have no calls and no branches, so that loops over them run in lanes (the polynomials are those
of Cephes' expf and logf); both are exact to 2e-7 of the value, the logarithm near 1 of x - 1.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from bytelm.model.numba_kernels import kernel_part

_kernel = partial(kernel_part, fastmath={"contract"})


@_kernel
def clip(value: np.float32, low: np.float32, high: np.float32) -> np.float32:
    """The nearest value in [low, high]."""
    return min(max(value, low), high)


@_kernel
def exp(x: np.float32) -> np.float32:
    """e^x, for x below -87 or above 88 that of these."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    doublings = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    rest = x - doublings * np.float32(0.693359375)
    rest = rest - doublings * np.float32(-2.12194440e-4)
    series = np.float32(1.9875691500e-4)
    series = series * rest + np.float32(1.3981999507e-3)
    series = series * rest + np.float32(8.3334519073e-3)
    series = series * rest + np.float32(4.1665795894e-2)
    series = series * rest + np.float32(1.6666665459e-1)
    series = series * rest + np.float32(5.0000001201e-1)
    series = series * (rest * rest) + rest + np.float32(1.0)
    exponent = np.int32((np.int32(doublings) + np.int32(127)) << np.int32(23))
    return series * exponent.view(np.float32)


@_kernel
def log(x: np.float32) -> np.float32:
    """The natural logarithm of x > 1e-37."""
    bits = np.float32(x).view(np.int32)
    doublings = np.int32(np.int32(bits >> np.int32(23)) - np.int32(126))
    mantissa = np.int32(np.int32(bits & np.int32(0x007FFFFF)) | np.int32(0x3F000000))
    m = mantissa.view(np.float32)  # in [0.5, 1)
    is_low = np.float32(1.0) if m < np.float32(0.70710678) else np.float32(0.0)
    m = m + is_low * m - np.float32(1.0)
    exponent = np.float32(doublings) - is_low
    series = np.float32(7.0376836292e-2)
    series = series * m - np.float32(1.1514610310e-1)
    series = series * m + np.float32(1.1676998740e-1)
    series = series * m - np.float32(1.2420140846e-1)
    series = series * m + np.float32(1.4249322787e-1)
    series = series * m - np.float32(1.6668057665e-1)
    series = series * m + np.float32(2.0000714765e-1)
    series = series * m - np.float32(2.4999993993e-1)
    series = series * m + np.float32(3.3333331174e-1)
    square = m * m
    low = series * m * square - np.float32(2.12194440e-4) * exponent - np.float32(0.5) * square
    return m + low + np.float32(0.693359375) * exponent


@_kernel
def sigmoid(logit: np.float32) -> np.float32:
    """The probability that has a logit."""
    return np.float32(1.0) / (np.float32(1.0) + exp(-logit))

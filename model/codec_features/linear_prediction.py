"""Linear prediction of audio samples from those before them.

FLAC sends the coefficients of its predictors. Here they follow from the last samples, anew for each
block, so that there is nothing to send (backward adaptation, as in ITU-T G.728).

All but the recursion is in whole numbers, whose sums are the same in any order: a prediction does
not depend on how many are computed at once.

Shapes:
    C channels    n samples of each    k blocks    p = ORDER
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bytelm.model.codec_features.formulas import clamp_sample
from bytelm.model.codec_features.layout import Number

ORDER = 24
PREDICTION_BLOCK = 16
"""Samples that are predicted with the same coefficients."""
WINDOW = 512
"""Samples before a block whose correlations give its coefficients."""
FRACTION_BITS = 14
"""Coefficients are fixed-point numbers: 2^FRACTION_BITS stands for 1."""
NOISE_FLOOR = 2.0**-24
"""Power of the white noise added to a signal, as a share of the signal's: it keeps the normal
equations of silence and of pure tones solvable."""


def _taper() -> Tensor:
    """[WINDOW] int64 weights of the samples before a block: less of older ones, and a short fall
    right before the block, where a step would look like a signal."""
    weight = torch.sin(math.pi / 2 * (torch.arange(WINDOW) + 0.5) / WINDOW)
    fall = WINDOW // 16
    weight[-fall:] *= torch.cos(math.pi / 2 * torch.arange(fall) / fall)
    return (1023 * weight).round().long()


TAPER = _taper()


def coefficients(preceding: Tensor) -> Tensor:
    """Coefficients that predict each block best from the samples before it.

    Args:
        preceding: [..., WINDOW] int64, samples of 16 bits, 0 before the first.
    Returns:
        [..., p] int64 fixed-point factors, that of the newest sample last.
    """
    tapered = preceding * TAPER.to(preceding.device)
    products = [
        (tapered[..., lag:] * tapered[..., : WINDOW - lag]).sum(dim=-1) for lag in range(ORDER + 1)
    ]  # below 2^59
    factors = _levinson(torch.stack(products).double())
    return (factors * 2**FRACTION_BITS).round().long().flip(0).movedim(0, -1)


def _levinson(correlation: Tensor) -> Tensor:
    """Levinson's recursion for the normal equations.

    correlation: [1 + p, ...] by lag. Returns [p, ...] factors, that of the newest sample first.
    """
    error = correlation[0] * (1 + NOISE_FLOOR) + 1.0
    factors = torch.zeros_like(correlation[1:])
    for i in range(ORDER):
        explained = (factors[:i] * correlation[1 : i + 1].flip(0)).sum(dim=0)
        reflection = (correlation[i + 1] - explained) / error
        factors[:i] -= reflection * factors[:i].flip(0)
        factors[i] = reflection
        error = error * (1 - reflection * reflection)
    return factors


def to_sample(weighted: Number) -> Number:
    """A sum of samples times coefficients, rounded to a sample."""
    return clamp_sample(weighted + 2 ** (FRACTION_BITS - 1) >> FRACTION_BITS)


def predict_samples(samples: Tensor) -> Tensor:
    """Predict each of the samples [C, n] int64 from those before it, and one more: [C, n + 1]."""
    count = samples.shape[1]
    blocks = count // PREDICTION_BLOCK + 1
    padded = F.pad(samples, (WINDOW, blocks * PREDICTION_BLOCK - count))
    windows = padded.unfold(1, WINDOW, PREDICTION_BLOCK)[:, :blocks]  # [C, k, WINDOW]
    factors = coefficients(windows).repeat_interleave(PREDICTION_BLOCK, dim=1)[
        :, : count + 1
    ]  # [C, n + 1, p]
    last = padded[:, WINDOW - ORDER :].unfold(1, ORDER, 1)[:, : count + 1]
    return to_sample((last * factors).sum(dim=-1))

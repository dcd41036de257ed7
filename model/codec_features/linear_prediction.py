"""Linear prediction of a sound's samples from those before them.

FLAC sends the coefficients of its predictors. Here they follow from the last samples, anew for each
BLOCK, so that there is nothing to send (what codecs call backward adaptation, as in ITU-T G.728).

All but the recursion is whole numbers, whose sums are the same in any order: a guess does not
depend on how many are made at once.

Shapes:
    C channels    n samples of each    k blocks    p = ORDER
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ORDER = 24
PREDICTION_BLOCK = 16
"""Samples that are predicted with the same coefficients."""
WINDOW = 512
"""Samples before a block, whose correlations give its coefficients."""
ONE_BITS = 14
"""2^ONE_BITS stands for 1 in a coefficient."""
FLOOR = 2.0**-24
"""Of the noise that is added to a sound, by its power, so that none is predicted from nothing."""


def _taper() -> Tensor:
    """[WINDOW] int64: of old samples less and less, and down at once before the block, where a
    step would look like a signal."""
    weight = torch.sin(math.pi / 2 * (torch.arange(WINDOW) + 0.5) / WINDOW)
    fall = WINDOW // 16
    weight[-fall:] *= torch.cos(math.pi / 2 * torch.arange(fall) / fall)
    return (1023 * weight).round().long()


TAPER = _taper()


def coefficients(before: Tensor) -> Tensor:
    """Of the predictions that fit the samples before blocks best, [..., p] int64, that of the
    newest sample last.

    before [..., WINDOW] int64: samples of 16 bits, 0 before the first.
    """
    tapered = before * TAPER.to(before.device)
    products = [
        (tapered[..., lag:] * tapered[..., : WINDOW - lag]).sum(dim=-1) for lag in range(ORDER + 1)
    ]  # below 2^59
    found = _levinson(torch.stack(products).double())
    return (found * 2**ONE_BITS).round().long().flip(0).movedim(0, -1)


def _levinson(correlation: Tensor) -> Tensor:
    """Levinson's recursion for the normal equations: [1 + p, ...] to [p, ...], the newest first."""
    error = correlation[0] * (1 + FLOOR) + 1.0
    found = torch.zeros_like(correlation[1:])
    for i in range(ORDER):
        explained = (found[:i] * correlation[1 : i + 1].flip(0)).sum(dim=0)
        reflection = (correlation[i + 1] - explained) / error
        found[:i] -= reflection * found[:i].flip(0)
        found[i] = reflection
        error = error * (1 - reflection * reflection)
    return found


def rounded(weighted: Tensor) -> Tensor:
    """A sum of samples with coefficients, as a sample."""
    return (weighted + 2 ** (ONE_BITS - 1) >> ONE_BITS).clamp(-32768, 32767)


def predicted(samples: Tensor) -> Tensor:
    """Each of the samples [C, n] int64 from those before it, and one more, [C, n + 1]."""
    count = samples.shape[1]
    blocks = count // PREDICTION_BLOCK + 1
    padded = F.pad(samples, (WINDOW, blocks * PREDICTION_BLOCK - count))
    windows = padded.unfold(1, WINDOW, PREDICTION_BLOCK)[:, :blocks]  # [C, k, WINDOW]
    of_blocks = coefficients(windows)
    of_each = of_blocks.repeat_interleave(PREDICTION_BLOCK, dim=1)[:, : count + 1]  # [C, n + 1, p]
    last = padded[:, WINDOW - ORDER :].unfold(1, ORDER, 1)[:, : count + 1]
    return rounded((last * of_each).sum(dim=-1))

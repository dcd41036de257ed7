"""The formulas of `codec_features` over tensors, for rows that are drawn on a GPU.

Shapes:
    B   rows
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bytelm.model.codec_features.tables import STEPS_PER_DOUBLING


def image_predictions(back: Callable[[Tensor], Tensor], pixel: Tensor, line: Tensor) -> Tensor:
    """Eight predictions of an image's next byte, [B, 8], in the order of `codec_features`.

    Args:
        back: the byte that lies so many [B] before the next one.
        pixel, line: [B], bytes of a pixel and of a line.
    """
    left, above, corner = back(pixel), back(line), back(line + pixel)
    previous = back(torch.ones_like(pixel))
    plane = left + above - corner
    median = plane.clamp(torch.minimum(left, above), torch.maximum(left, above))
    predictions = (
        median,
        plane.clamp(0, 255),
        (previous + above - back(line + 1)).clamp(0, 255),
        (previous + left - back(pixel + 1)).clamp(0, 255),
        left,
        above,
        corner,
        back(line - pixel),
    )
    return torch.stack(predictions, dim=1)


def signed(byte: Tensor) -> Tensor:
    """A byte read as two's complement, -128 to 127."""
    return byte - (byte >> 7 << 8)


class Magnitude:
    """STEPS_PER_DOUBLING * log2(1 + total / span), rounded down, at most 255."""

    def __init__(self, span: int, device: torch.device) -> None:
        steps = (2 ** (i / STEPS_PER_DOUBLING) - 1 for i in range(1, 256))
        self._least = torch.tensor([math.ceil(span * step) for step in steps], device=device)
        """The least totals of 1, 2, ... 255."""

    def __call__(self, total: Tensor) -> Tensor:
        """Whole numbers of any shape to theirs."""
        return torch.searchsorted(self._least, total.contiguous(), right=True)

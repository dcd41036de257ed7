"""The form in which readers of sound files give samples: blocks as wide as the file has them.

m frames of a block (one sample of each channel)    c channels
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

BLOCK_FRAMES = 1 << 16
"""Frames that are read or converted at once, which bounds memory."""
FULL_SCALE = 32768

Block = npt.NDArray[Any]
"""[m c] samples: int16; int32 with the high bits used; or float32 of full scale 1."""


@dataclass
class SoundStream:
    """An open sound file whose header passed the reader's checks."""

    rate: int
    """Samples a second in each channel."""
    channels: int
    frames: int | None
    """Frames that the file states; None where it states none."""
    blocks: Iterator[Block]
    """All samples, in order. A block of int32, or of floats where `is_float` is False, may be
    overwritten by the next. Raises MediaError where samples are damaged or end early."""
    is_float: bool = False
    """Whether the file holds floating-point samples, whose range no format enforces; a lossy codec
    that decodes to them does not count."""
    float_scale: int = FULL_SCALE
    """Factor from blocks of floats to 16 bits."""
    notes: list[str] = field(default_factory=list)
    """Changes that reading made; complete once the blocks are read."""

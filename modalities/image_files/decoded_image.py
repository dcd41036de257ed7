"""The form in which every image decoder hands on an image.

n lines of a band    w pixels of a line    v values of a pixel, with alpha
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import PIL.Image

from bytelm.modalities.base import Limits, MediaError

BAND_PIXELS = 1 << 20
"""Pixels that are converted at once, which bounds memory."""

NO_END_NOTE = "no end marker"
SEVERAL_NOTE = "first of several pictures"
REDUCED_NOTE = "{} bits kept as 8"
"""With the bits of a sample in the file."""

Samples = npt.NDArray[np.uint16]


@dataclass
class DecodedImage:
    """The first frame of an image file, as the file stores it."""

    width: int
    height: int
    channels: int
    """1 for grey, 3 for colour, without alpha."""
    bands: Iterable[PIL.Image.Image] = ()
    """Bands of whole lines from top to bottom, of 8 bits, in the modes 1, L, LA, P, RGB, RGBA and
    CMYK. `info["transparency"]` is Pillow's. Empty where there are `deep_bands`."""
    deep_bands: Iterable[Samples] | None = None
    """[n w v] bands of a file of more than 8 bits, on the full scale of 16; v of 2 or 4 has alpha.
    None where the file has no more than 8."""
    stored_bits: int = 16
    """Bits of a sample in the file, where there are `deep_bands`."""
    significant_bits: int = 16
    """Bits of the 16 that the file says to be of use."""
    transparent: tuple[int, ...] = ()
    """[v] values in `deep_bands` of a transparent colour."""
    orientation: int = 1
    """EXIF's number: how the pixels have to be turned."""
    profile: bytes = b""
    """ICC profile of the colours."""
    notes: list[str] = field(default_factory=list)
    """Changes that decoding made, as in `Sample.notes`."""


def check_size(width: int, height: int, channels: int, limits: Limits) -> None:
    """Raise MediaError for an image without pixels, or one above the limits."""
    if not width or not height:
        raise MediaError("empty", f"an image of {width} x {height} pixels")
    if max(width, height) > limits.max_side or width * height * channels > limits.max_bytes:
        raise MediaError("over the limit", f"an image of {width} x {height} pixels")


def band_lines(width: int) -> int:
    """Lines of a band of an image of this width."""
    return max(1, BAND_PIXELS // width)


def bands_of(image: PIL.Image.Image) -> Iterator[PIL.Image.Image]:
    """Cut an image into bands of whole lines, whose conversion needs little memory."""
    lines = band_lines(image.width)
    if image.height <= lines:
        yield image
        return
    for top in range(0, image.height, lines):
        yield image.crop((0, top, image.width, min(top + lines, image.height)))

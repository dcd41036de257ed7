"""Orientation of an image from its EXIF or XMP block.

Metadata never refuses pixels: a block that cannot be read is taken as absent.
"""

from __future__ import annotations

import re
import struct

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.unsignedinteger]

_ORIENTATION_TAG = 0x0112
_SHORT, _LONG = 3, 4
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:\s*=\s*["\']|>)\s*([1-8])')


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """EXIF's number of the orientation, 1 to 8; 1 (upright) where no block gives a valid one."""
    number = _exif_orientation(exif)
    if number is None:
        match = _XMP_ORIENTATION.search(xmp)
        number = int(match[1]) if match else 1
    return number


def _exif_orientation(exif: bytes) -> int | None:
    """The tag in the first directory of a TIFF structure; None where it is absent or no number."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return None
    offset = struct.unpack_from(order + "I", exif, 4)[0]
    if offset + 2 > len(exif):
        return None
    entries = struct.unpack_from(order + "H", exif, offset)[0]
    for at in range(offset + 2, min(offset + 2 + 12 * entries, len(exif) - 11), 12):
        tag, kind, count = struct.unpack_from(order + "HHI", exif, at)
        if tag == _ORIENTATION_TAG and kind in (_SHORT, _LONG) and count == 1:
            number = struct.unpack_from(order + ("H" if kind == _SHORT else "I"), exif, at + 8)[0]
            return number if 1 <= number <= 8 else None
    return None


def turn(pixels: Pixels, number: int) -> Pixels:
    """Pixels [h w c] turned upright from an orientation of EXIF's number, 1 to 8."""
    if number >= 5:  # stored with lines and columns exchanged
        pixels = pixels.transpose(1, 0, 2)
        number = {5: 1, 6: 2, 7: 3, 8: 4}[number]
    if number in (2, 3):
        pixels = np.flip(pixels, 1)
    if number in (3, 4):
        pixels = np.flip(pixels, 0)
    return pixels
